"""T5 and UMT5: the encoders of prompts in SD3, Flux and others, also alone.

A block gives a tuple that begins with the hidden state.
"""

from vlm_edit.host import Adapter, SiteRule, TapRule

adapter = Adapter(
    sites=(
        SiteRule("encoder.{i}", (TapRule(("encoder.block.{i}",), "text"),), width=("d_model",)),
    ),
    calls=("encoder",),
)
