"""Train dictionaries on stored activations of one or both streams."""

from vlm_edit.dictionaries.training.config import Kind as Kind
from vlm_edit.dictionaries.training.config import TrainConfig as TrainConfig
from vlm_edit.dictionaries.training.run import train_dictionary as train_dictionary
from vlm_edit.dictionaries.training.separate import train_paired as train_paired
