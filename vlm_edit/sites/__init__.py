"""Sites: named places in a host, and the adapters that name them.

A host is any model of the user's. An adapter declares, for one family of hosts, which module
paths are sites and whose tokens flow there. This room knows no model: adapters are found through
the entry point group ``vlm_edit.adapters``, keyed by ``model.config.model_type`` or by the
host's class. A pipeline's hosts are one host together, of which each brings its own adapter.
"""

from vlm_edit.sites.declare import (
    VISUAL_INPUTS,
    Adapter,
    Encoder,
    PipelineAdapter,
    SiteRule,
    Stream,
    TapRule,
)
from vlm_edit.sites.host import Host, Inputs, Prompt, find_sites
from vlm_edit.sites.pipelines import Model, Pipeline, PipelineHost, class_of
from vlm_edit.sites.registry import ENTRY_POINTS, find_adapter, join_adapters
from vlm_edit.sites.resolve import (
    Site,
    Tap,
    image_token_ids,
)
from vlm_edit.sites.resolve import find_module as find_module
from vlm_edit.sites.towers import Tower, two_towers
from vlm_edit.sites.wrappers import unwrap

__all__ = [
    "ENTRY_POINTS",
    "VISUAL_INPUTS",
    "Adapter",
    "Encoder",
    "Host",
    "Inputs",
    "Model",
    "Pipeline",
    "PipelineAdapter",
    "PipelineHost",
    "Prompt",
    "Site",
    "SiteRule",
    "Stream",
    "Tap",
    "TapRule",
    "Tower",
    "class_of",
    "find_adapter",
    "find_sites",
    "image_token_ids",
    "join_adapters",
    "two_towers",
    "unwrap",
]
