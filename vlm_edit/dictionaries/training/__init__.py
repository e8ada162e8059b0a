"""Train dictionaries on stored activations of one or both streams."""

from vlm_edit.dictionaries.training.config import Kind, TrainConfig
from vlm_edit.dictionaries.training.run import train_dictionary
from vlm_edit.dictionaries.training.separate import train_paired

__all__ = ["Kind", "TrainConfig", "train_dictionary", "train_paired"]
