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

from vlm_edit.hooks.calls import Call, read_call
from vlm_edit.hooks.choice import Phase, Selection, TokenChoice
from vlm_edit.hooks.dispatch import (
    Callback,
    Dispatcher,
    Handle,
    attach,
    follow,
    hidden_of,
    replace_hidden,
)
from vlm_edit.hooks.followers import (
    Choice,
    Chosen,
    Follower,
    choices,
    chosen_in,
    forget_follower,
    meant,
    register_follower,
)
from vlm_edit.hooks.generation import Generation, read_prompt
from vlm_edit.hooks.given import unplaced as unplaced
from vlm_edit.hooks.guidance import runs_of
from vlm_edit.hooks.methods import StandIn
from vlm_edit.hooks.record import Capture, Recording, record
from vlm_edit.hooks.threads import Threads
from vlm_edit.hooks.tokens import Tokens
from vlm_edit.hooks.tracker import CallTracker

__all__ = [
    "Call",
    "CallTracker",
    "Callback",
    "Capture",
    "Choice",
    "Chosen",
    "Dispatcher",
    "Follower",
    "Generation",
    "Handle",
    "Phase",
    "Recording",
    "Selection",
    "StandIn",
    "Threads",
    "TokenChoice",
    "Tokens",
    "attach",
    "choices",
    "chosen_in",
    "follow",
    "forget_follower",
    "hidden_of",
    "meant",
    "read_call",
    "read_prompt",
    "record",
    "register_follower",
    "replace_hidden",
    "runs_of",
]
