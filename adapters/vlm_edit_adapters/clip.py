"""CLIP: a joint embedding with one projection per stream, and two towers of layers.

The towers also stand alone, with or without their projection.
"""

from vlm_edit.host import Tower, two_towers

image_tower = Tower(
    "image",
    layers=("encoder.layers.{i}",),
    joint=("visual_projection",),
    path="vision_model",
    config="vision_config",
    ends=("+mlp.fc2",),
)
text_tower = Tower(
    "text",
    layers=("encoder.layers.{i}",),
    joint=("text_projection",),
    path="text_model",
    config="text_config",
    ends=("+mlp.fc2",),
)

adapter = two_towers(image_tower, text_tower, width=("projection_dim",))
vision = image_tower.alone(joint=("projection_dim",))
text = text_tower.alone(joint=("projection_dim",))
