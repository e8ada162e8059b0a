"""Dictionaries: sparse autoencoders and raw neurons, and their formats on disk."""

from vlm_edit.dictionaries.activation_store import BEGUN as BEGUN
from vlm_edit.dictionaries.activation_store import WHOLE as WHOLE
from vlm_edit.dictionaries.activation_store import ActivationsWriter as ActivationsWriter
from vlm_edit.dictionaries.activation_store import Index as Index
from vlm_edit.dictionaries.activation_store import MappedRows as MappedRows
from vlm_edit.dictionaries.activation_store import Split as Split
from vlm_edit.dictionaries.activation_store import StoredActivations, load_activations
from vlm_edit.dictionaries.activation_store import delete_parts as delete_parts
from vlm_edit.dictionaries.activation_store import read_index as read_index
from vlm_edit.dictionaries.activation_store import write_part as write_part
from vlm_edit.dictionaries.activations import Activation, register_activation
from vlm_edit.dictionaries.dictionary import Dictionary
from vlm_edit.dictionaries.dictionary import Slice as Slice
from vlm_edit.dictionaries.dictionary import expect_features as expect_features
from vlm_edit.dictionaries.encoder import Encoder
from vlm_edit.dictionaries.encoder import expect as expect
from vlm_edit.dictionaries.encoder import move as move
from vlm_edit.dictionaries.encodes import Encodes as Encodes
from vlm_edit.dictionaries.encodes import identity
from vlm_edit.dictionaries.formats import Format, Layout, load_dictionary, register_format
from vlm_edit.dictionaries.formats.saving import save_saelens
from vlm_edit.dictionaries.matching import Similarity as Similarity
from vlm_edit.dictionaries.matching import match_dictionaries, match_features
from vlm_edit.dictionaries.norms import Norm, register_norm
from vlm_edit.dictionaries.origin import expect_model as expect_model
from vlm_edit.dictionaries.origin import expect_origin as expect_origin
from vlm_edit.dictionaries.paired import STREAMS as STREAMS
from vlm_edit.dictionaries.paired import PairedDictionary
from vlm_edit.dictionaries.stored import Rows, StoredDictionary
from vlm_edit.dictionaries.training import Callback as Callback
from vlm_edit.dictionaries.training import Kind as Kind
from vlm_edit.dictionaries.training import (
    TrainConfig,
    reporter,
    train_dictionary,
    train_paired,
)
from vlm_edit.dictionaries.training import service_of as service_of
from vlm_edit.dictionaries.transcoder import AnyDictionary as AnyDictionary
from vlm_edit.dictionaries.transcoder import PlainDictionary as PlainDictionary
from vlm_edit.dictionaries.transcoder import Transcoder
from vlm_edit.dictionaries.transcoder import expect_plain as expect_plain
from vlm_edit.dictionaries.written import written as written

__all__ = [
    "Activation",
    "Dictionary",
    "Encoder",
    "Format",
    "Layout",
    "Norm",
    "PairedDictionary",
    "Rows",
    "StoredActivations",
    "StoredDictionary",
    "TrainConfig",
    "Transcoder",
    "identity",
    "load_activations",
    "load_dictionary",
    "match_dictionaries",
    "match_features",
    "register_format",
    "register_activation",
    "register_norm",
    "reporter",
    "save_saelens",
    "train_dictionary",
    "train_paired",
]
