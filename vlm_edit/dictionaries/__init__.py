"""Dictionaries: sparse autoencoders and raw neurons, and their formats on disk."""

from vlm_edit.dictionaries.dictionary import Dictionary, Slice
from vlm_edit.dictionaries.encoder import Activation, Encoder, Norm
from vlm_edit.dictionaries.encodes import Encodes
from vlm_edit.dictionaries.formats import Layout, load_dictionary
from vlm_edit.dictionaries.formats.saelens import save_saelens
from vlm_edit.dictionaries.stored import Rows, StoredDictionary
from vlm_edit.dictionaries.training import Kind, TrainConfig, train_dictionary

__all__ = [
    "Activation",
    "Dictionary",
    "Encoder",
    "Encodes",
    "Kind",
    "Layout",
    "Norm",
    "Rows",
    "Slice",
    "StoredDictionary",
    "TrainConfig",
    "load_dictionary",
    "save_saelens",
    "train_dictionary",
]
