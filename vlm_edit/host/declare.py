"""What an adapter says of a family of hosts: data only, checked when it is written down."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from vlm_edit.ground.errors import BadArgument

Stream = Literal["image", "text", "mixed", "audio"]

VISUAL_INPUTS = (
    "pixel_values",
    "pixel_values_videos",
    "image_embeds",
    "video_embeds",
    "image_features",
    "input_features",
    "mm_encoder_outputs",
)
_AUDIO = re.compile(r"audio|speech|^input_(features|values)")
Ids = str | int | tuple[str | int, ...]


def brought_by(name: str) -> str:
    """Return the modality that an argument of a forward brings: image, video or audio.

    Example:
        >>> brought_by("pixel_values_videos"), brought_by("pixels"), brought_by("input_features")
        ('video', 'image', 'audio')
    """
    return "audio" if _AUDIO.search(name) else "video" if "video" in name else "image"


MARKS = ("{i}", "{j}")


@dataclass(frozen=True)
class TapRule:
    """The place of one stream of a site.

    Attributes:
        paths: Candidate module paths, tried in order (they move between releases of a host's
            library); ``{i}`` stands for a layer's number, ``{i}.{j}`` for a stage's and that of a
            layer in it. A path that ends in ``()`` names a method, where a host has no module:
            ``encode_text()``. If the method takes ``normalize``, the site is what it gives before
            that.
        stream: ``image``, ``text``, ``audio``, or ``mixed`` where they share one sequence.
        axis: Which axis of the output is the width: 1 for images [B, D, H, W].
        ends: What the output ends in, for edits that are baked into weights: candidates of a path
            inside the module, of the ``nn.Linear`` that gives it (``linear_2``); with a ``+``
            before it, of one whose output is added to it last, by itself (``+mlp.fc2``). Empty if
            neither is sure; a module that is an ``nn.Linear`` needs none.
        field: The name under which an output with several tensors by name has the state.
        tokens: How many tokens of the stream a row has, where hosts of one layout may put others
            beside them: an attribute of the config (or of the host itself), or the number. An
            output with more or fewer is refused. None where the stream has all of them.

    Raises:
        VlmEditError: No path, or another stream.
    """

    paths: tuple[str, ...]
    stream: Stream
    axis: int = -1
    ends: tuple[str, ...] = ()
    tokens: str | int | None = None
    field: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no host can have."""
        if isinstance(self.ends, str):
            raise BadArgument(f'a TapRule\'s ends are candidates too: write ("{self.ends}",)')
        if isinstance(self.paths, str) or not self.paths:
            raise BadArgument(
                f"a TapRule's paths are a tuple of candidates, not {self.paths!r}: write "
                '("encoder.layers.{i}",)'
            )
        if self.stream not in get_args(Stream):
            raise BadArgument(
                f"no stream {self.stream!r} (at {self.paths[0]}): it is one of "
                f"{', '.join(get_args(Stream))}"
            )


@dataclass(frozen=True)
class SiteRule:
    """A family's rule for the name and the place of a site.

    Attributes:
        name: ``joint``, with a layer's number ``vision.{i}``, or with a stage's and a layer's
            ``vision.{i}.{j}``. Its taps' paths hold the same marks.
        taps: One rule per module.
        width: Candidates for the width: dotted attributes of ``model.config`` or of the model
            itself, or the number. An attribute with a list has one entry per ``{i}``.
        consumed: Dotted attribute of the config that holds the index (or indices) into
            ``hidden_states`` the host reads from these layers, or the index; later layers are
            dead. Only for layers named by ``{i}`` alone.
        optional: Whether hosts of the family may lack the site without being refused.

    Raises:
        VlmEditError: Marks of the name that a path lacks, or ``consumed`` without layers.
    """

    name: str
    taps: tuple[TapRule, ...]
    width: tuple[str | int, ...]
    consumed: str | int | None = None
    optional: bool = False

    def __post_init__(self) -> None:
        """Refuse a name whose numbers no path can give."""
        marks = _marks(self.name)
        for path in (path for tap in self.taps for path in tap.paths):
            if _marks(path) != marks:
                raise BadArgument(
                    f"site {self.name!r} lies at {path!r}, which has not the same numbers: write "
                    "{i} (and {j} for layers in stages) in both or in neither"
                )
        if self.consumed is not None and marks != ("{i}",):
            raise BadArgument(
                f"site {self.name!r} has consumed={self.consumed!r}, an index into layers, but "
                "its name has not {i} alone: leave consumed out"
            )


PARTS = ("image", "text")


@dataclass(frozen=True)
class Layout:
    """The order in which a module inside a host has image and text, where no id says it.

    How many tokens each part has is read from every call: those of the text are the ``input_ids``
    of the call itself, or of the call around it; those of the image are the rest.

    Attributes:
        paths: Candidate paths of the module that is called with the sequence, its first argument
            or ``query_embeds``.
        parts: ``("image", "text")`` or ``("text", "image")``, as they stand.
        ahead: How many tokens of neither stand before both, as an attribute of the config (or of
            the host itself), or the number. They go with the text's special tokens.
        images: The module's argument that holds the number of image tokens, where it has one;
            all are image where it is None.
        cut: How many ids at the beginning of the call around it the host leaves out of the text,
            where they are more than the text: likewise an attribute, or the number.

    Raises:
        VlmEditError: No path, or other parts.

    Example:
        >>> Layout(("encoder",), ("text", "image")).ahead
        0
        >>> Layout(("encoder",), ("text", "picture"))
        Traceback (most recent call last):
        vlm_edit.ground.errors.BadArgument: a Layout's parts are 'image' and 'text' in their order,
        not ('text', 'picture') (at encoder)
    """

    paths: tuple[str, ...]
    parts: tuple[str, str]
    ahead: str | int = 0
    images: str | None = None
    cut: str | int = 0

    def __post_init__(self) -> None:
        """Refuse what no sequence can be."""
        if isinstance(self.paths, str) or not self.paths:
            raise BadArgument(
                f"a Layout's paths are a tuple of candidates, not {self.paths!r}: write "
                '("encoder",)'
            )
        if tuple(sorted(self.parts)) != PARTS:
            raise BadArgument(
                f"a Layout's parts are 'image' and 'text' in their order, not {self.parts!r} "
                f"(at {self.paths[0]})"
            )


@dataclass(frozen=True)
class PipelineEncoder:
    """A model inside a pipeline that reads what the pipeline is to draw.

    Attributes:
        name: The pipeline's name for it: ``text_encoder_2``. Its own adapter, found as if it stood
            alone, names its sites: ``text_encoder_2.text.3``. Pipelines that lack it are fine.
        tokenizer: The pipeline's name for its tokenizer; None where it reads images.
        prompts: Arguments of the pipeline with its texts; of several the first that is given.
        read: The index into its ``hidden_states`` that the pipeline reads, where it reads nothing
            behind that: later layers are dead.
        unread: Its own sites that the pipeline never reads.
    """

    name: str
    tokenizer: str | None = None
    prompts: tuple[str, ...] = ()
    read: int | None = None
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class PipelineAdapter:
    """A declaration of what a family of pipelines encodes, and how it is led away from something.

    Classifier-free guidance (https://arxiv.org/abs/2207.12598) draws towards a prompt and away
    from a negative one; both go through the same encoders.

    Attributes:
        encoders: The models that have sites.
        methods: Methods of the pipeline that run the encoders, for the prompt, for the negative
            one or for both. None if nothing is ever encoded to be led away from.
        negative: What begins the names of arguments with negative prompts.
        given: Arguments that spare the prompt's encoding, being its result.
        appended: Whether negative prompts are also encoded behind the prompts, as in Kandinsky's
            priors, which draw an embedding of each.

    Example:
        >>> adapter = PipelineAdapter(
        ...     (PipelineEncoder("text_encoder", "tokenizer", ("prompt",)),), ("go",)
        ... )
        >>> adapter.encoder("text_encoder.encoder.layers.3").tokenizer
        'tokenizer'
    """

    encoders: tuple[PipelineEncoder, ...]
    methods: tuple[str, ...] = ()
    negative: str = "negative_"
    given: tuple[str, ...] = ("prompt_embeds", "text_model_output")
    appended: bool = False

    def encoder(self, path: str) -> PipelineEncoder | None:
        """Return the encoder that a module's path in the pipeline leads into."""
        name = path.split(".")[0]
        return next((encoder for encoder in self.encoders if encoder.name == name), None)


@dataclass(frozen=True)
class Adapter:
    """A declaration of what a family of hosts calls its places.

    Attributes:
        sites: The family's sites.
        image_token: Id of the placeholder that the host replaces by image features: the attribute
            of the config (or of the host itself) that holds it, or the number. Several where
            there are more kinds; those after the first may be missing. None for hosts without a
            mixed sequence.
        video_token: That of videos, likewise; hosts of the family may lack it.
        audio_token: That of sounds, likewise.
        places: Argument of the host's forward that marks image tokens, [B, S], where the host
            takes their places from the caller.
        has_placeholders: Whether it names ids of placeholders of any kind.
        visual_inputs: Arguments of the host's forward that carry images, videos or sounds; their
            names say which. Placeholder ids count only in calls that carry what they stand for.
        calls: Paths of modules inside the host that the host's code also calls on their own,
            with a sequence of their own: a decoder that ``generate`` runs without the host's
            forward, a text tower behind ``get_text_features``. What a call's arguments do not
            tell is taken from the call around it. Paths the host lacks are passed over.
        grid: Argument of such a call, [images, 3], whose rows multiply to the number of patches
            that each image has in a packed sequence [patches, D]; None for batched images.
        layouts: Modules inside the host whose sequence holds image and text by position.
        pipeline: For the hosts of a pipeline together: what it encodes, and for whom.

    Example:
        >>> from vlm_edit.host import Adapter, SiteRule, TapRule
        >>> adapter = Adapter(
        ...     sites=(
        ...         SiteRule("vision.{i}", (TapRule(("blocks.{i}",), "image"),), ("hidden_size",)),
        ...     )
        ... )
        >>> [rule.name for rule in adapter.sites]
        ['vision.{i}']
    """

    sites: tuple[SiteRule, ...]
    image_token: Ids | None = None
    visual_inputs: tuple[str, ...] = VISUAL_INPUTS
    calls: tuple[str, ...] = ()
    grid: str | None = None
    pipeline: PipelineAdapter | None = None
    video_token: Ids | None = None
    audio_token: Ids | None = None

    places: str | None = None
    layouts: tuple[Layout, ...] = ()
    has_placeholders: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Say once whether it names ids of placeholders of any kind: every step asks."""
        named = (self.image_token, self.video_token, self.audio_token)
        object.__setattr__(self, "has_placeholders", named != (None, None, None))

    @classmethod
    def of(
        cls,
        sites: Mapping[str, Place | Sequence[Place]],
        *,
        image_token: Ids | None = None,
        visual_inputs: Sequence[str] = VISUAL_INPUTS,
        calls: Sequence[str] = (),
        grid: str | None = None,
        video_token: Ids | None = None,
        audio_token: Ids | None = None,
        places: str | None = None,
        layouts: Sequence[Layout] = (),
    ) -> Adapter:
        """Make an adapter for one model of your own, any ``torch.nn.Module``.

        Args:
            sites: By name (``vision.{i}`` for layers) where the site is: ``(path, stream,
                width)``, with the width as a number or as an attribute's name; a fourth entry is
                the width's axis where it is not the last. A list of such places if the site has
                several modules, one per stream: a joint embedding.
            image_token: As in the class.
            visual_inputs: As in the class.
            calls: As in the class.
            grid: As in the class.
            video_token: As in the class.
            audio_token: As in the class.
            places: As in the class.
            layouts: As in the class.

        Raises:
            VlmEditError: A place that is not of that form, an unknown stream, or modules of one
                site that differ in width.

        Example:
            >>> import torch
            >>> from torch import nn
            >>> from vlm_edit import Adapter, Dictionary, Host, Patch, Scale
            >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
            >>> adapter = Adapter.of({"hidden": ("1", "image", 4), "joint": ("2", "image", 2)})
            >>> host = Host.of(model, adapter=adapter)
            >>> [(site.name, site.width) for site in host.sites.values()]
            [('hidden', 4), ('joint', 2)]
            >>> x = torch.ones(1, 3)
            >>> patch = Patch("joint", Dictionary.identity(2), Scale([1], 0.0))
            >>> with patch.attach(host):
            ...     model(x)[0, 1].item()
            0.0
        """
        return cls(
            tuple(_rule(name, places) for name, places in sites.items()),
            image_token,
            tuple(visual_inputs),
            tuple(calls),
            grid,
            video_token=video_token,
            audio_token=audio_token,
            places=places,
            layouts=tuple(layouts),
        )


Place = tuple[str, Stream, str | int] | tuple[str, Stream, str | int, int]


def _rule(name: str, places: Place | Sequence[Place]) -> SiteRule:
    entries = [places] if isinstance(places, tuple) and isinstance(places[0], str) else list(places)
    taps, widths = [], []
    for place in entries:
        if not isinstance(place, tuple) or len(place) not in (3, 4):
            raise BadArgument(
                f"site {name!r}: {place!r} is not a place; write (path, stream, width), for "
                'example ("encoder.layers.{i}", "image", 768)'
            )
        path, stream, width, *axis = place
        taps.append(TapRule((path,), stream, *axis))
        widths.append(width)
    if not widths:
        raise BadArgument(f"site {name!r}: it has no place; write (path, stream, width)")
    if len(set(widths)) > 1:
        raise BadArgument(
            f"site {name!r}: its modules are {' and '.join(map(str, widths))} wide; "
            "the modules of one site share one width, others are sites of their own"
        )
    return SiteRule(name, tuple(taps), (widths[0],))


def _marks(text: str) -> tuple[str, ...]:
    """Return the marks of numbers in a name or path, in order."""
    return tuple(re.findall("|".join(map(re.escape, MARKS)), text))
