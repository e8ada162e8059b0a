"""Where in a host a binding acts, after every check that can be made before it runs."""

from __future__ import annotations

from dataclasses import replace

import torch

from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.modality import SENSED, is_among
from vlm_edit.hooks import expect_one
from vlm_edit.host import Host, Site, side_by_side
from vlm_edit.patches.binding import Binding


def target_of(host: Host, binding: Binding) -> Site:
    """Return the binding's site with the taps it acts on, after every check possible by now."""
    site = host.site(binding.site)
    expect_one(site)
    if site.dead:
        raise BadArgument(f"an edit at {site.name!r} would change nothing: {site.dead}")
    host.expect_width(site, binding.splice.slice.decoder.shape[1])
    _expect_reads(host, binding, site)
    tokens = binding.selection.modality
    if tokens != "all":
        taps = tuple(t for t in site.taps if t.stream == "mixed" or is_among(t.stream, tokens))
        if not taps:
            raise BadArgument(
                f"no {tokens} tokens pass site {site.name!r} (only "
                f"{', '.join(site.streams)}): an edit of them there would change nothing"
            )
        site = replace(site, taps=taps)
    if binding.selection.phase == "decode" and set(site.streams) <= set(SENSED):
        sensed = "sounds" if "audio" in site.streams else "images"
        raise BadArgument(
            f"phase='decode' at site {site.name!r} would change nothing: {sensed} are encoded with "
            "the prompt. Use phase='prompt', or a language site"
        )
    centers = binding.splice.slice.encoder.centers
    missing = [s for s in site.streams if centers and s not in centers]
    if missing:
        mixed = any(tap.stream == "mixed" for tap in site.taps)
        mend = "add the center" if mixed else "pass tokens= to edit those alone"
        raise BadArgument(
            f"the dictionary has no center for the {missing[0]} stream of site {site.name!r}, "
            f"only for {', '.join(centers)}: {mend}"
        )
    return site


def _expect_reads(host: Host, binding: Binding, site: Site) -> None:
    """Refuse what a transcoder reads, where it is not what its encoder takes."""
    if not binding.reads:
        return
    reads = [host.site(name) for name in binding.reads]
    both = side_by_side(reads) if len(reads) > 1 else reads[0]
    side_by_side([*(place for place in reads if place.name != site.name), site])
    host.expect_width(both, binding.splice.slice.encoder.weight.shape[0])


def device_of(site: Site, host: Host) -> torch.device:
    """Return the device where a site's output will most likely be."""
    for module in (site.taps[0].module, host.root):
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.device.type != "meta":
                return tensor.device
    return torch.device("cpu")
