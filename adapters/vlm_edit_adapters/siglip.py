"""SigLIP and SigLIP 2: each tower ends in a head, whose output is the joint embedding."""

from vlm_edit.host import Tower, two_towers

image_tower = Tower(
    "image",
    layers=("encoder.layers.{i}",),
    joint=("vision_model.head",),
    path="vision_model",
    config="vision_config",
    ends=("+mlp.fc2",),
    joint_ends=("+mlp.fc2",),
)
text_tower = Tower(
    "text",
    layers=("encoder.layers.{i}",),
    joint=("text_model.head",),
    path="text_model",
    config="text_config",
    ends=("+mlp.fc2",),
)

adapter = two_towers(image_tower, text_tower, width=("vision_config.hidden_size",))
vision = image_tower.alone(joint=("hidden_size",))
text = text_tower.alone(joint=("projection_size",), optional=False)
