"""Sites: named places in a host, and the adapters that name them.

A host is any model of the user's. An adapter declares, for one family of hosts, which module
paths are sites and whose tokens flow there. This room knows no model: adapters are found through
the entry point group ``vlm_edit.adapters``, keyed by ``model.config.model_type`` or by the
host's class. A pipeline's hosts are one host together, of which each brings its own adapter.
"""

from vlm_edit.host.adapters import ENTRY_POINTS as ENTRY_POINTS
from vlm_edit.host.adapters import find_adapter as find_adapter
from vlm_edit.host.adapters import join_adapters
from vlm_edit.host.adapters import other_family as other_family
from vlm_edit.host.adapters import registered_adapter as registered_adapter
from vlm_edit.host.answers import answers as answers
from vlm_edit.host.answers import is_reached as is_reached
from vlm_edit.host.answers import same_answers as same_answers
from vlm_edit.host.declare import VISUAL_INPUTS as VISUAL_INPUTS
from vlm_edit.host.declare import (
    Adapter,
    Layout,
    PipelineAdapter,
    PipelineEncoder,
    SiteRule,
    TapRule,
)
from vlm_edit.host.declare import Stream as Stream
from vlm_edit.host.declare import brought_by as brought_by
from vlm_edit.host.fingerprint import expect_host as expect_host
from vlm_edit.host.fingerprint import fingerprint as fingerprint
from vlm_edit.host.fingerprint import loaded_as as loaded_as
from vlm_edit.host.fingerprint import same_weights as same_weights
from vlm_edit.host.fingerprint import unguarded as unguarded
from vlm_edit.host.host import Host, find_sites
from vlm_edit.host.inputs import InputMaker as InputMaker
from vlm_edit.host.inputs import Inputs as Inputs
from vlm_edit.host.inputs import Prompt as Prompt
from vlm_edit.host.inside import may_rest as may_rest
from vlm_edit.host.inside import some_inside as some_inside
from vlm_edit.host.loading import load_pipeline as load_pipeline
from vlm_edit.host.pipelines import Model as Model
from vlm_edit.host.pipelines import Pipeline as Pipeline
from vlm_edit.host.pipelines import PipelineHost as PipelineHost
from vlm_edit.host.pipelines import class_of as class_of
from vlm_edit.host.prompts import caption_in as caption_in
from vlm_edit.host.random import random_host
from vlm_edit.host.resolve import Site, Tap
from vlm_edit.host.resolve import find_module as find_module
from vlm_edit.host.resolve import layouts_in as layouts_in
from vlm_edit.host.resolve import placeholder_ids as placeholder_ids
from vlm_edit.host.resolve import resolve as resolve
from vlm_edit.host.resolve import side_by_side as side_by_side
from vlm_edit.host.telling import DIFFUSERS as DIFFUSERS
from vlm_edit.host.telling import expect_diffusers as expect_diffusers
from vlm_edit.host.telling import one_line as one_line
from vlm_edit.host.telling import quiet_when_piped as quiet_when_piped
from vlm_edit.host.towers import Tower, two_towers
from vlm_edit.host.weights import host_checksums as host_checksums
from vlm_edit.host.wrappers import unwrap as unwrap

__all__ = [
    "Adapter",
    "PipelineEncoder",
    "Host",
    "Layout",
    "PipelineAdapter",
    "Site",
    "SiteRule",
    "Tap",
    "TapRule",
    "Tower",
    "find_sites",
    "join_adapters",
    "random_host",
    "two_towers",
]
