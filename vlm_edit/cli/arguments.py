"""Declare what each verb takes: a class of arguments a verb, its docstring the verb's help.

Nothing heavy is imported here, so that help and completion are quick: choices and defaults of the
library are written out, and tests hold them equal.
"""

# Annotations must be objects: of strings typer would not find the names where one is inherited.

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Literal

from typer import Argument

from vlm_edit.cli.loading import Asking, Loading
from vlm_edit.cli.shared import Columns, Count, LeftOpen, Number, Tells, Text, Writes, option

RADII = [1.0, 2.0, 4.0, 8.0]
Class = Literal["vision", "language", "cross"]
Cut = Literal["interval", "significant", "sd", "fixed"]
Tokens = Literal["all", "image", "video", "visual", "audio", "text", "text+special"]


def positional(name: str, help: str, **more: Any) -> Any:
    """Return an argument without a dash, as help names it."""
    return Argument(metavar=name, help=help, **more)


def several(help: str, *names: str, **more: Any) -> Any:
    """Return an option that may be given again, or not at all."""
    more = {"default_factory": list, "show_default": False, **more}
    return option(f"{help}; may be given again", *names, **more)


Model = Annotated[
    str,
    positional(
        "MODEL", "a folder as save_pretrained writes it, owner/name on the hub, or zoo:emoji-clip"
    ),
]
Batch = Annotated[int, option("pairs per forward")]
Kept = Annotated[Count, option("tokens kept of a pair and stream (all)")]
Every = Annotated[
    float, option("seconds between two checkpoints, from which the same command goes on")
]
Back = Annotated[Text, option("page that this one leads back to, such as a run's", metavar="PAGE")]
Seed = Annotated[int, option("of every draw")]
SAVED = "a patch file, a folder with one, or owner/name on the hub"
Saved = Annotated[str, positional("PATCH", SAVED)]
DICTIONARY = option(
    "folder or file of a dictionary in any known format, owner/name on the hub, "
    "release:NAME/SAE_ID as SAELens names it, 'neurons' for the raw dimensions, or zoo:joint"
)


@dataclass(frozen=True, kw_only=True)
class Demo(Tells):
    """Go the whole way on emoji-clip, checked against what is known."""

    out: Annotated[Text, option("to write (vlm-edit-demo; with --llava nothing)")] = None
    llava: Annotated[bool, option("instead ask emoji-llava about images", "--llava")] = False
    overwrite: Annotated[
        bool, option("write into a folder that holds something already", "--overwrite")
    ] = False


@dataclass(frozen=True, kw_only=True)
class Sites(Loading, Tells):
    """List the sites of a model."""

    model: Model
    inside: Annotated[Text, option("a layer, to list the sites inside it")] = None


@dataclass(frozen=True, kw_only=True)
class Doctor(Asking, Tells):
    """Try what works on a model; the exit code is 1 if anything fails."""

    model: Model
    image: Annotated[Text, option("a file to try it with (one is drawn)")] = None
    text: Annotated[str, option("what goes with it")] = "What is this?"


@dataclass(frozen=True, kw_only=True)
class Places(Asking, Columns, Tells):
    """Name a model, pairs, and a site."""

    model: Model
    pairs: Annotated[
        str,
        positional("PAIRS", "CSV, JSON lines, folder, shards: docs/command-line.md; or zoo:pairs"),
    ]
    site: Annotated[str, option("where")] = "joint"
    batch_size: Batch = 64


@dataclass(frozen=True, kw_only=True)
class Subjected(Places, LeftOpen):
    """Name a dictionary too."""

    dictionary: Annotated[Text, DICTIONARY] = None


PROMPTS = positional(
    "PAIRS", "CSV, JSON lines or folder: docs/command-line.md; prompts alone, .txt; or zoo:pairs"
)


def _clip(text: str) -> float | None:
    return None if text == "none" else float(text)


@dataclass(frozen=True, kw_only=True)
class Collect(Places, Writes):
    """Write a model's activations to the disk, to train on."""

    pairs: Annotated[str, PROMPTS] = field()
    out: Annotated[str, option("folder to write them to; killed, it goes on from there")]
    most: Kept = None
    seed: Seed = 0
    stored_as: Annotated[
        Literal["float32", "bfloat16"],
        option("bfloat16 takes half as much, and rounds what a model in float32 gives"),
    ] = "float32"
    part_size: Annotated[int, option("MiB of a file, at most", metavar="MIB")] = 256


@dataclass(frozen=True, kw_only=True)
class Train(Places, Writes):
    """Train a dictionary on a model's activations."""

    model: Annotated[
        str, positional("MODEL", "as elsewhere; not needed with --activations", show_default=False)
    ] = ""
    pairs: Annotated[
        str, positional("PAIRS", "likewise; prompts alone do, .txt", show_default=False)
    ] = ""
    activations: Annotated[
        Text,
        option(
            "folder that collect wrote; with MODEL and PAIRS they are collected there, and stay",
            metavar="FOLDER",
        ),
    ] = None

    out: Annotated[
        str, option("folder for the dictionary (SAELens v6; of two streams, one in it for each)")
    ]
    kind: Literal[
        "relu", "topk", "batchtopk", "jumprelu", "matryoshka", "ncl", "gated", "archetypal"
    ] = "batchtopk"
    separate: Annotated[bool, option("one for each stream, matched by pairs", "--separate")] = False
    features: int = 512
    k: Annotated[int, option("active features")] = 16
    steps: int = 4000
    rows: Annotated[int, option("activations a step")] = 1024
    seed: Seed = 0
    lr: Annotated[float, option("learning rate")] = 3e-3
    longest: Annotated[
        float | None, option("leave out activations longer than N times their median", metavar="N")
    ] = None
    clip: Annotated[
        Number, option("longest gradient of a step, or none", parser=_clip, metavar="NORM")
    ] = 0.05
    middle: Annotated[
        Literal["mean", "median"],
        option("of activations, where the decoder's bias begins; few long ones move no median"),
    ] = "mean"
    precision: Annotated[
        Literal["float32", "bfloat16"],
        option("of products of activations and weights; weights stay in float32"),
    ] = "float32"
    start: Annotated[
        Text,
        option(
            "dictionary of the same size and norm to begin with, named as --dictionary elsewhere",
            metavar="DICTIONARY",
        ),
    ] = None
    norm: Annotated[
        Text,
        option(
            "what is divided out of activations: none, layer_norm, constant_norm_rescale or one of "
            "your own (the last at a joint embedding, else none)",
            metavar="NAME",
        ),
    ] = None
    target_l0: Annotated[
        Number,
        option("active features that relu, jumprelu and gated shall reach (--k)", metavar="L0"),
    ] = None
    points: Annotated[
        int | None,
        option(
            "centroids of activations that archetypal rows mix (twice as many as features)",
            metavar="N",
        ),
    ] = None
    delta: Annotated[
        float, option("how far archetypal rows may lie from mixtures, in lengths of activations")
    ] = 0.1
    align: Annotated[
        float, option("weight of Iso-Energy alignment, of the codes of a pair's two sides")
    ] = 0.0
    compile: Annotated[bool, option("compile steps, where there is a compiler", "--compile")] = (
        False
    )
    log: Annotated[Text, option("CSV file for the figures of every 100th step", metavar="FILE")] = (
        None
    )
    report_to: Annotated[
        Literal["tensorboard", "trackio", "wandb"] | None,
        option("service for these figures; tensorboard's files lie in OUT-tensorboard"),
    ] = None
    held_out: Annotated[float, option("share of pairs to check it on")] = 0.1
    loss: Annotated[
        bool,
        option("compare the model's own loss on these with the reconstruction in place", "--loss"),
    ] = False
    most: Kept = None
    every: Every = 60.0


@dataclass(frozen=True, kw_only=True)
class Check(Subjected):
    """Check whether a dictionary fits a model, and what may be wrong."""

    pairs: Annotated[str, PROMPTS] = field()
    dictionary: Annotated[str, DICTIONARY] = field()
    most: Kept = None
    loss: Annotated[
        bool,
        option("compare the model's own loss with the reconstruction in place, too", "--loss"),
    ] = False


@dataclass(frozen=True, kw_only=True)
class Measure(Subjected, Writes):
    """Measure the dominance of a dictionary's features on pairs."""

    dictionary: Annotated[str, DICTIONARY] = field()
    out: Annotated[str, option("folder to write the run to")] = "vlm-edit-run"
    text_encoder: Annotated[
        Text,
        option(
            "an independent text encoder (sentence-transformers or transformers folder), to score "
            "how alike a feature's texts are",
            metavar="FOLDER",
        ),
    ] = None
    image_encoder: Annotated[
        Text, option("likewise of images (transformers folder)", metavar="FOLDER")
    ] = None
    shared_space: Annotated[
        bool, option("one model's encoders: compare images with texts too", "--shared-space")
    ] = False
    zeros: Literal["skip", "half", "epsilon"] = "skip"
    keep: Annotated[int, option("top examples per feature")] = 50
    centred: Annotated[
        bool, option("measure again with each stream centred apart", "--centred")
    ] = False
    part: Annotated[
        Text,
        option(
            "measure one of N parts, as one of N processes with the same --out; the last to finish "
            "makes the run (what torchrun, srun or mpirun say, else all)",
            metavar="I/N",
        ),
    ] = None
    every: Every = 60.0
    also: Annotated[
        list[str],
        several(
            "measure this in the same pass too, and write its run into a folder in --out",
            metavar="SITE=DICTIONARY",
        ),
    ]
    maps: Annotated[
        int,
        option(
            "keep where each feature fires, patch by patch and word by word, in so many of its "
            "strongest examples, and in as many drawn; 0 for none"
        ),
    ] = 3
    workers: Annotated[
        Count, option("processes that decode images ahead of the model; none beside one on the CPU")
    ] = None
    verify: Annotated[
        Literal["sample", "all"],
        option("images to look at again when a run goes on, besides the files' sizes and times"),
    ] = "sample"
    until_width: Annotated[
        Number,
        option(
            "stop once the 90 % intervals of the scores are so narrow, as seen after 512 pairs, "
            "1,024, 2,048...; pairs must be in random order",
            metavar="W",
        ),
    ] = None
    until_features: Annotated[
        Text, option("whose intervals, such as 3,17 (those of --until-share)", metavar="K,K")
    ] = None
    until_share: Annotated[
        Number, option("of pairs in which such a feature fires at least (.01)", metavar="S")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Maps(Subjected, Writes):
    """Show where features fire in pictures and texts, at any layer."""

    dictionary: Annotated[str, DICTIONARY] = field()
    site: Annotated[str, option("a layer, such as vision.3, text.3 or language.16")] = field()
    out: Annotated[str, option("folder for the page and the maps")] = "vlm-edit-maps"
    features: Annotated[Text, option("which, such as 3,17 (all)", metavar="K,K")] = None
    per: Annotated[
        int, option("examples of a feature and stream: its strongest, and as many drawn")
    ] = 3
    shown: Annotated[int, option("features on the page, the strongest first")] = 100
    side: Annotated[int, option("of a picture on the page, in pixels")] = 160


@dataclass(frozen=True, kw_only=True)
class Census(Subjected, Writes):
    """Count features by class, beside nulls that have none to find."""

    dictionary: Annotated[str, DICTIONARY] = field()
    skip: Annotated[
        list[str],
        several(
            "a row to leave out: swapped, unpaired, joint, random-dictionary; or one that trains a "
            "dictionary: frozen-dictionary, retrained, random-host",
            metavar="ROW",
        ),
    ]
    factor: Annotated[
        Text,
        option("column with what images show, read without the vision class", metavar="COLUMN"),
    ] = None
    cuts: Annotated[Cut, option("rule for the classes")] = "interval"
    deleted: Annotated[int, option("features, at most, to read --factor without")] = 16
    steps: Annotated[int, option("of each training")] = 600
    halves: Annotated[int, option("of the pairs, drawn so often, whose classes to compare")] = 20
    seed: Seed = 0
    run: Annotated[Text, option("show it on this run's page", metavar="RUN")] = None


@dataclass(frozen=True, kw_only=True)
class Report(Writes, Columns, Tells):
    """Write a run's page with pictures, or several runs' pages."""

    run: Annotated[
        list[str],
        positional(
            "RUN...", "folder that measure wrote; edit --run adds to it; several are compared"
        ),
    ]
    pairs: Annotated[Text, option("the run's pairs, if they have moved")] = None
    page: Annotated[
        Text, option("the page (RUN/index.html; of several runs compare.html)", metavar="FILE")
    ] = None
    title: Annotated[Text, option("of the page")] = None
    seed: Annotated[int, option("of the random features")] = 0
    neuronpedia: Annotated[
        Text, option("write files for Neuronpedia into this folder too", metavar="FOLDER")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Verified(Tells):
    """Say how files of patches are read."""

    no_verify: Annotated[
        bool, option("read a file even if a byte of it has changed", "--no-verify")
    ] = False


@dataclass(frozen=True, kw_only=True)
class Onto(Verified):
    """Say whether a patch may go onto another model than its own."""

    no_check_host: Annotated[
        bool, option("take a model that is not the one the patch was made for", "--no-check-host")
    ] = False


@dataclass(frozen=True, kw_only=True)
class Edit(Onto, Subjected, Writes):
    """Make or take a patch, and show what it does, before and after."""

    patch: Annotated[Text, option("apply this saved patch")] = None
    name: Annotated[Class | None, option("make it of this class of features", "--class")] = None
    features: Annotated[Text, option("or of these numbers, such as 3,17,40")] = None
    cuts: Annotated[Cut | None, option("rule for --class (interval)")] = None
    most: Annotated[Count, option("so many of --class, the surest, proven or not")] = None
    rule: Annotated[Literal["ablate", "scale", "clamp", "steer"] | None, option("(ablate)")] = None
    factor: Annotated[Number, option("for scale")] = None
    value: Annotated[Number, option("for clamp")] = None
    amount: Annotated[Number, option("for steer")] = None
    strength: Annotated[Number, option("of the rule (1)")] = None
    tokens: Annotated[Tokens | None, option("(all)")] = None
    ask: Annotated[
        Text, option("of a model that speaks, about each image (its text)", metavar="QUESTION")
    ] = None
    shown: Annotated[int, option("pairs that a model that speaks is asked about")] = 4
    run: Annotated[Text, option("show it on this run's page", metavar="RUN")] = None
    save: Annotated[Text, option("write the patch here", metavar="FILE")] = None


@dataclass(frozen=True, kw_only=True)
class One(Verified):
    """Say which patch of several."""

    file: Annotated[Text, option("which one, where a folder or repository has several")] = None
    revision: Annotated[Text, option("branch, tag or commit of a repository")] = None


@dataclass(frozen=True, kw_only=True)
class Info(One):
    """Tell what is in a patch."""

    patch: Saved
    card: Annotated[bool, option("as the card of a repository instead", "--card")] = False


@dataclass(frozen=True, kw_only=True)
class Apply(Onto, Loading):
    """Check that a patch fits a model, or bake it in."""

    model: Model
    patch: Saved
    patch_file: Annotated[Text, option("as --file of patch info")] = None
    patch_revision: Annotated[Text, option("of the patch's own repository")] = None
    bake: Annotated[
        Text, option("write a copy of the model with the edit in its weights", metavar="FOLDER")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Merge(Verified):
    """Put several patches of one model in one file."""

    patches: Annotated[
        list[str], positional("PATCHES", "patch files, folders with one, or owner/name on the hub")
    ]
    out: Annotated[str, option("a file that is not there yet", metavar="FILE")]


@dataclass(frozen=True, kw_only=True)
class Diff(Verified):
    """Tell what two patches have not in common (then exit 1)."""

    first: Annotated[str, positional("FIRST", SAVED)]
    second: Annotated[str, positional("SECOND", SAVED)]


@dataclass(frozen=True, kw_only=True)
class Bias(Loading, Writes, Columns, Tells, LeftOpen):
    """Measure bias between groups of images, and lessen it by a patch."""

    model: Model
    data: Annotated[
        str,
        positional(
            "DATA",
            "folder of FairFace, UTKFace, CelebA or Waterbirds, or pairs with a column of "
            "groups (CSV, JSON lines or folder), or zoo:pairs",
        ),
    ]
    split: Annotated[Text, option("of the data set (the one that is tested on)")] = None
    most: Annotated[Count, option("images, drawn at random (all)")] = None
    attribute: Annotated[str, option("column of the groups")] = "gender"
    values: Annotated[Text, option("of it, such as man,woman (all but none)")] = None
    prompt: Annotated[
        list[str],
        several("a prompt of a value (the value in three templates)", metavar="VALUE=TEXT"),
    ]
    label: Annotated[Text, option("column that must still be recognised, such as concept")] = None
    queries: Annotated[
        Text, option("texts of no group, a line each (the labels, or people)", metavar="FILE")
    ] = None
    split_by: Annotated[Text, option("whose values stay on one side", metavar="COLUMN")] = None
    seed: Seed = 0
    k: Annotated[int, option("hits that skews count")] = 20
    way: Literal["ablate", "project", "difference"] = "difference"
    aim: Annotated[
        Literal["prompts", "probe"],
        option("what must no longer tell the groups: prompts, or a probe trained anew"),
    ] = "prompts"
    tolerance: Annotated[float, option("of utility, to lose")] = 0.01
    batch_size: Batch = 64
    dictionary: Annotated[Text, option("as for measure; without one, baselines alone")] = None
    back: Back = None
    out: Annotated[str, option("folder to write")] = "vlm-edit-bias"


@dataclass(frozen=True, kw_only=True)
class Attack(Subjected, Writes):
    """Fool a model on a folder of images, with a patch or without."""

    dictionary: Annotated[Text, option("as for measure: to see which features move")] = None
    label: Annotated[Text, option("column with the right class (each image's own text)")] = None
    labels: Annotated[Text, option("further classes, a line each", metavar="FILE")] = None
    label_prompt: Annotated[str, option("of a label")] = "a picture of {}"
    question: Annotated[Text, option("ask a model that speaks, and attack its answer")] = None
    target: Annotated[Text, option("what is to be chosen, or answered", metavar="TEXT")] = None
    eps: Annotated[
        list[float],
        several("radii, of 255 (1 2 4 8)", default_factory=RADII.copy, metavar="EPS..."),
    ]
    steps: Annotated[int, option("of each attack")] = 20
    queries: Annotated[int, option("of Square Attack, 0 for none")] = 100
    most: Annotated[int, option("images, drawn")] = 64
    seed: Seed = 0
    name: Annotated[
        Class | None, option("also attack through it alone, and as many at random", "--class")
    ] = None
    patch: Annotated[Text, option("patch to attack through, or zoo:robust-emoji-clip")] = None
    back: Back = None
    out: Annotated[str, option("folder to write")] = "vlm-edit-attack"


class Taken(StrEnum):
    """What is taken from a reference: an enumeration, since typer lists no literals."""

    VISION = "vision"
    CROSS = "cross"
    LANGUAGE = "language"
    WHOLE = "whole"


@dataclass(frozen=True, kw_only=True)
class Draw(Loading, Writes, Tells, LeftOpen):
    """Draw with features taken from a reference, scaled, or kept alone."""

    prompt: Annotated[str, positional("PROMPT", "what to draw: a text, or an image file")]
    reference: Annotated[list[str], several("what to take from: an image file, or a text")]
    rule: Annotated[
        Literal["blend", "scale", "keep"],
        option(
            "blend toward the reference; or of the prompt's own features scale some, or keep them "
            "and lose all others"
        ),
    ] = "blend"
    classes: Annotated[
        list[Taken], several("of features, or the reference's whole embedding (all)", "--class")
    ]
    strength: Annotated[
        Text,
        option(
            "several with commas: 0 draws the prompt, 1 takes the features over, or keeps nothing "
            "else (0,0.5,1); for scale the factor (0,1,2)"
        ),
    ] = None
    pipeline: Annotated[
        str, option("of class UnclipPipeline: a folder, owner/name on the hub, or the zoo's")
    ] = "zoo:emoji-unclip"
    site: Annotated[str, option("where")] = "joint"
    dictionary: Annotated[str, option("as for measure")] = "zoo:joint"
    run: Annotated[
        Text, option("of measure: for the classes; its page shows the picture", metavar="RUN")
    ] = None
    pairs: Annotated[str, option("measure on these without --run")] = "zoo:pairs"
    cuts: Annotated[Cut, option("rule for the classes")] = "interval"
    most: Annotated[Count, option("so many of each class, the surest, proven or not")] = None
    steps: Annotated[Count, option("of the scheduler (the pipeline's)")] = None
    seed: Annotated[int, option("of the noise")] = 0
    out: Annotated[str, option("the picture")] = "draw.png"
