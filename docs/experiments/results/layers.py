"""Where images and texts meet in a LLaVA: every language layer, its own caption and a wrong one.

python docs/experiments results.layers
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from results import common
from results.common import Subject
from vlm_edit.ground.statistics import mean_estimate, proportion
from vlm_edit.report import Table


def compute(layers: dict[str, dict[str, Subject]]) -> dict[str, Any]:
    """Per layer and kind of caption: classes, what fires together, and what is retrieved."""
    result: dict[str, Any] = {}
    for site, kinds in layers.items():
        for kind, subject in kinds.items():
            found = subject.dominance
            classes = found.classes("significant")
            matched, shuffled = found.cofiring()
            cross = torch.as_tensor(classes["cross"], dtype=torch.long)
            right = _retrieved(subject.codes)
            result[f"{site}, {kind}"] = {
                "mean": common.rounded(found.mean),
                "sd": common.rounded(found.sd),
                "gap": common.rounded(subject.found.gap),
                "classes": {name: len(members) for name, members in classes.items()},
                "paired": int(found.paired().sum()),
                "cofiring": [common.told(mean_estimate(v[cross])) for v in (matched, shuffled)],
                "retrieval": common.told(proportion(int(right.sum()), len(right))),
                "cross share": [common.rounded(_share(codes, cross)) for codes in
                                subject.codes.values()],
            }  # fmt: skip
    return result


def _retrieved(codes: dict[str, Tensor]) -> Tensor:
    """Whether an image's codes are nearest to those of the text it stood before, [n] bool."""
    image, text = (F.normalize(codes[s] - codes[s].mean(0), dim=1) for s in common.STREAMS)
    return (image @ text.T).argmax(1) == torch.arange(len(image))


def _share(codes: Tensor, features: Tensor) -> float:
    return float(codes[:, features].sum() / codes.sum())


def tables(result: dict[str, Any]) -> list[Table]:
    """A row per layer and kind of caption."""
    rows = []
    for name, told in result.items():
        classes = told["classes"]
        rows.append(
            (
                *name.split(", "),
                f"{told['mean']:.3f} ({told['sd']:.3f})",
                f"{classes['vision']} / {classes['language']} / {classes['cross']}",
                " / ".join(f"{share:.0%}" for share in told["cross share"]),
                str(told["paired"]),
                *(common.cell(estimate) for estimate in told["cofiring"]),
                common.cell(told["retrieval"]),
                f"{told['gap']:.3f}",
            )
        )
    return [
        Table(
            "emoji-llava, layer by layer: 1,024 images, each before its caption or a wrong one",
            ("layer", "caption", "MDS", "vision / language / cross", "activity of cross",
             "paired", "cross: matched", "cross: shuffled", "retrieval R@1", "gap"),
            rows,
            "Codes pooled over image and over text tokens. MDS: mean (sd). Classes by the rule "
            "significant. Activity of cross: their share of all activity in images / texts. "
            "Paired: features of any class that fire together on matched pairs more than on "
            "shuffled ones. Retrieval: of the text an image stood before, by centred codes; "
            "chance is .001. Intervals: over features; Wilson for retrieval. Layer 0 of "
            "this host attends to nothing, so there nothing can have met: a built-in null.",
        )
    ]  # fmt: skip


def both(sites: tuple[str, ...] = common.LAYERS) -> dict[str, dict[str, Subject]]:
    """Every layer with both kinds of caption."""
    return {
        site: {
            "its own": common.subject("llava", site),
            "a wrong one": common.subject("llava", site, "dictionary", wrong=True),
        }
        for site in sites
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = compute(both())
    common.save("layers", found)
    print("\n\n".join(str(table) for table in tables(found)))
