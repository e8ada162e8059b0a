"""Attach callbacks to sites, record what flows there, and know each token's modality.

The only room that touches forward hooks.

Example:
    >>> import torch
    >>> from vlm_edit import zoo
    >>> from vlm_edit.hooks import record
    >>> host, processor = zoo.load_host()
    >>> inputs = processor(text=["a cat"], return_tensors="pt")
    >>> with record(host, "text.0") as recording, torch.no_grad():
    ...     _ = host.get_text_features(**inputs)
    >>> recording.captures[0].hidden.shape[-1] == host.config.text_config.hidden_size
    True
"""

from vlm_edit.hooks.dispatch import Callback, Handle, attach, replace_hidden
from vlm_edit.hooks.mask import ModalityTracker, Where, modality
from vlm_edit.hooks.record import Capture, Recording, record

__all__ = [
    "Callback",
    "Capture",
    "Handle",
    "ModalityTracker",
    "Recording",
    "Where",
    "attach",
    "modality",
    "record",
    "replace_hidden",
]
