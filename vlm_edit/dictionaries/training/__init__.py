"""Train dictionaries on stored activations of one or both streams."""

from vlm_edit.dictionaries.training.config import Kind as Kind
from vlm_edit.dictionaries.training.config import TrainConfig as TrainConfig
from vlm_edit.dictionaries.training.reporting import Callback as Callback
from vlm_edit.dictionaries.training.reporting import reporter as reporter
from vlm_edit.dictionaries.training.reporting import service_of as service_of
from vlm_edit.dictionaries.training.run import train_dictionary as train_dictionary
from vlm_edit.dictionaries.training.separate import train_paired as train_paired
