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

from vlm_edit.hooks.beside import Beside as Beside
from vlm_edit.hooks.bypass import bypassed as bypassed
from vlm_edit.hooks.calls import Call
from vlm_edit.hooks.calls import read_call as read_call
from vlm_edit.hooks.choice import Phase as Phase
from vlm_edit.hooks.choice import Selection
from vlm_edit.hooks.choice import TokenChoice as TokenChoice
from vlm_edit.hooks.compiled import bare as bare
from vlm_edit.hooks.compiled import prepare as prepare
from vlm_edit.hooks.dispatch import Callback as Callback
from vlm_edit.hooks.dispatch import Dispatcher as Dispatcher
from vlm_edit.hooks.dispatch import Handle, attach
from vlm_edit.hooks.dispatch import expect_one as expect_one
from vlm_edit.hooks.dispatch import follow as follow
from vlm_edit.hooks.dispatch import hidden_of as hidden_of
from vlm_edit.hooks.dispatch import replace_hidden as replace_hidden
from vlm_edit.hooks.followers import Choice, Follower, forget_follower, register_follower
from vlm_edit.hooks.followers import Chosen as Chosen
from vlm_edit.hooks.followers import choices as choices
from vlm_edit.hooks.followers import chosen_in as chosen_in
from vlm_edit.hooks.followers import meant as meant
from vlm_edit.hooks.generation import Generation as Generation
from vlm_edit.hooks.generation import read_prompt as read_prompt
from vlm_edit.hooks.given import unplaced as unplaced
from vlm_edit.hooks.guidance import runs_of as runs_of
from vlm_edit.hooks.methods import StandIn as StandIn
from vlm_edit.hooks.on_host import OnHost as OnHost
from vlm_edit.hooks.provenance import entering as entering
from vlm_edit.hooks.record import Capture, Recording, record
from vlm_edit.hooks.scopes import Bounds as Bounds
from vlm_edit.hooks.scopes import Scope as Scope
from vlm_edit.hooks.scopes import warn_of_loop as warn_of_loop
from vlm_edit.hooks.special import Special as Special
from vlm_edit.hooks.stopping import EarlyStop
from vlm_edit.hooks.tokens import Tokens
from vlm_edit.hooks.tracker import CallTracker as CallTracker

__all__ = [
    "Call",
    "Capture",
    "Choice",
    "EarlyStop",
    "Follower",
    "Handle",
    "Recording",
    "Selection",
    "Tokens",
    "attach",
    "forget_follower",
    "record",
    "register_follower",
]
