"""Activations on the disk: written part after part, read where they lie."""

from vlm_edit.dictionaries.activation_store.index import BEGUN as BEGUN
from vlm_edit.dictionaries.activation_store.index import WHOLE as WHOLE
from vlm_edit.dictionaries.activation_store.index import Index as Index
from vlm_edit.dictionaries.activation_store.index import read_index as read_index
from vlm_edit.dictionaries.activation_store.rows import MappedRows as MappedRows
from vlm_edit.dictionaries.activation_store.store import Split as Split
from vlm_edit.dictionaries.activation_store.store import StoredActivations as StoredActivations
from vlm_edit.dictionaries.activation_store.store import load_activations as load_activations
from vlm_edit.dictionaries.activation_store.writing import ActivationsWriter as ActivationsWriter
from vlm_edit.dictionaries.activation_store.writing import delete_parts as delete_parts
from vlm_edit.dictionaries.activation_store.writing import write_part as write_part
