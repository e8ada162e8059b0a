"""What features are called, what they promote, and which are their neighbours."""

from vlm_edit.measuring.naming.names import NAME_COLUMNS, Name, Names
from vlm_edit.measuring.naming.naming import name_features
from vlm_edit.measuring.naming.near import Neighbours, neighbours
from vlm_edit.measuring.naming.promoting import Promoted, promotes
from vlm_edit.measuring.naming.vocabulary import caption_holds

__all__ = [
    "NAME_COLUMNS",
    "Name",
    "Names",
    "Neighbours",
    "Promoted",
    "caption_holds",
    "name_features",
    "neighbours",
    "promotes",
]
