"""AltCLIP: CLIP's vision tower, and an XLM-RoBERTa that reads many languages."""

from vlm_edit.host import Tower, two_towers
from vlm_edit_adapters.clip import image_tower

text_tower = Tower(
    "text",
    layers=("roberta.encoder.layers.{i}", "roberta.encoder.layer.{i}"),
    joint=("text_projection",),
    path="text_model",
    config="text_config",
)

adapter = two_towers(image_tower, text_tower, width=("projection_dim",))
vision = image_tower.alone()
text = text_tower.alone()
