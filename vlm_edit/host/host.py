"""Host: a model with what is known of it, resolved once."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlm_edit.ground.errors import BadArgument, CannotKnow, UnknownName, VlmEditError, WrongHost
from vlm_edit.ground.licences import licence_of
from vlm_edit.ground.notebook import card, one_line, several
from vlm_edit.ground.plugs import plugged
from vlm_edit.ground.sites import BESIDE, layer_of
from vlm_edit.host.adapters import find_adapter, fit_adapter, import_adapter
from vlm_edit.host.declare import Adapter
from vlm_edit.host.inputs import InputMaker, Inputs, Prompt, as_prompts
from vlm_edit.host.inside import sites_inside
from vlm_edit.host.loading import Bits, DeviceMap, load
from vlm_edit.host.pipelines import Model, PipelineHost, class_of, encode
from vlm_edit.host.prompts import Template, read_back, remember, special_ids
from vlm_edit.host.resolve import (
    Site,
    abridged,
    find_module,
    grouped,
    resolve,
    side_by_side,
)
from vlm_edit.host.sources import HUB_NAME
from vlm_edit.host.weights import device_of
from vlm_edit.host.wrappers import unwrap

if TYPE_CHECKING:
    from PIL import Image


class Host:
    """Hold a model with what is known of it, resolved once; the model stays the user's own.

    Whatever takes a host takes a bare model too, and then looks it up anew at every call.

    Args:
        model: A ``torch.nn.Module``, or a pipeline that holds several. Neither its code nor its
            weights change.
        processor: Makes its inputs of images and texts; None where none are made.
        adapter: Declares its sites; None to find the one of its kind, when it is first needed.
        prompt: What it is asked with each pair: a template with ``{image}`` and ``{text}``, or
            ``chat`` for the processor's chat template, which is the default where there is one;
            else the image comes before the text. Or a function of (processor, images, texts) that
            makes its inputs, as ``Inputs`` if it can tell which tokens are the texts' own. A
            pipeline encodes the texts, and draws only where such a function makes its call.

    Attributes:
        model: As given.
        processor: As given.
        prompt: As given.
        root: The model inside what wraps it (``torch.compile``, DDP, FSDP, peft); a pipeline's
            models as one module.

    Example:
        >>> from vlm_edit import Host, zoo
        >>> host = Host.of(*zoo.load_host())
        >>> host
        Host(CLIPModel with 8 sites and a CLIPProcessor)
        >>> host.site("joint").width
        192
    """

    def __init__(
        self,
        model: Model,
        processor: Any = None,
        adapter: Adapter | None = None,
        prompt: Prompt | None = None,
    ) -> None:
        self.model, self.processor, self.prompt = model, processor, prompt
        self.root = unwrap(model)
        if not isinstance(self.root, nn.Module):
            raise BadArgument(
                f"a {type(model).__name__} is no host: give a torch.nn.Module, or a pipeline of "
                "diffusers"
            )
        self._given, self._missing = adapter, "this host has none"
        self._sites: dict[str, Site] = {}
        self._inner: dict[str, Site] = {}
        if self.is_pipeline and isinstance(prompt, str):
            raise BadArgument(
                f"the prompt {prompt!r} is a template, and a pipeline takes its texts as they are: "
                "write it into the texts, or give a function that makes the pipeline's call"
            )
        asked = as_prompts if self._only_encodes else prompt
        self._maker = InputMaker(processor, asked, self.text_limit)

    @classmethod
    def of(
        cls,
        model: Model | Host,
        processor: Any = None,
        adapter: Adapter | None = None,
        prompt: Prompt | None = None,
    ) -> Host:
        """Make a host of a model; a host comes back as it is.

        Args:
            model: As for ``Host``, like the rest, or a host.
            processor: Likewise.
            adapter: Likewise.
            prompt: Likewise.

        Raises:
            BadArgument: No model, or more said of a host that is made already.
        """
        if not isinstance(model, Host):
            if adapter is not None and not isinstance(adapter, Adapter):
                raise BadArgument(
                    f"adapter is a {type(adapter).__name__}; give a vlm_edit.Adapter, such as "
                    "Adapter.of({...}) makes"
                )
            return cls(model, processor, adapter, prompt)
        if processor is not None or adapter is not None or prompt is not None:
            raise BadArgument(
                "a host that is made already takes no other processor, adapter or prompt: pass "
                "its model, Host.of(host.model, ...)"
            )
        return model

    @classmethod
    def load(
        cls,
        name: str | Path,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        *,
        revision: str | None = None,
        device_map: DeviceMap | None = None,
        quantize: Bits | None = None,
        trust_remote_code: bool = False,
        adapter: Adapter | str | None = None,
        prompt: Prompt | None = None,
    ) -> Host:
        """Load a model and its processor; no code of a folder or repository runs unasked.

        Args:
            name: A folder that transformers or diffusers has saved, ``owner/name`` on the hub, or
                a host that an installed distribution brings by the entry points
                ``vlm_edit.hosts``, such as ``zoo:emoji-clip``.
            device: Where it is to run; ``auto`` is the best there is.
            dtype: Of its weights; ``auto`` is the checkpoint's own.
            revision: Of a repository on the hub; a branch, tag or commit.
            device_map: Spreads it over several devices instead, by accelerate: ``auto``,
                ``balanced``, or a device by module.
            quantize: Its linear layers, by bitsandbytes: ``4bit`` or ``8bit``.
            trust_remote_code: Whether code that the folder or repository brings may run.
            adapter: As for ``Host``; or ``module:name`` of one, whose module is imported.
            prompt: As for ``Host``.

        Returns:
            The host in evaluation mode; without a processor where none can be loaded, which
            whatever needs one then says.

        Raises:
            BadArgument: There is no model of that name, device or dtype.
            VlmEditError: transformers or diffusers cannot load it.

        Example:
            >>> from vlm_edit import Host
            >>> Host.load("zoo:emoji-clip", device="cpu")
            Host(CLIPModel with 8 sites and a CLIPProcessor)
        """
        given = import_adapter(adapter) if isinstance(adapter, str) else adapter
        options: dict[str, Any] = {"revision": revision, "device_map": device_map}
        options |= {"quantize": quantize, "trust_remote_code": trust_remote_code}
        loaded = load(name, device, dtype, **options)
        host = cls.of(loaded.model, loaded.processor, fit_adapter(given, loaded.model), prompt)
        host._missing = loaded.missing
        return host

    def __repr__(self) -> str:
        """Say on a line what it is."""
        try:
            sites = f" with {several(len(self.sites), 'site')}"
        except VlmEditError:
            sites = " without known sites"
        processor = "" if self.processor is None else f" and a {type(self.processor).__name__}"
        return one_line(f"Host({self.kind.__name__}{sites}{processor})")

    def _repr_html_(self) -> str:
        """Say it in a notebook, with its sites."""
        weight = next(self.root.parameters(), None)
        processor = "none" if self.processor is None else type(self.processor).__name__
        facts: dict[str, object] = {"name": self.hub_name} if self.hub_name else {}
        facts |= {"processor": processor, "mode": "train" if self.root.training else "eval"}
        if weight is not None:
            facts |= {"device": weight.device, "dtype": weight.dtype}
        try:
            sites = self.sites
        except VlmEditError as error:
            return card(f"Host: {self.kind.__name__}", facts, note=str(error))
        rows = []
        for name, names in grouped(list(sites)).items():
            widths = dict.fromkeys(str(sites[n].width) for n in names)
            rows.append((name, ", ".join(widths), " and ".join(sites[names[0]].streams)))
        return card(f"Host: {self.kind.__name__}", facts, ("sites", "width", "streams"), rows)

    def __call__(self, **inputs: Any) -> Any:
        """Call the model, through what wraps it."""
        model: Any = self.model
        return model(**inputs)

    def prepare(self, *sites: str) -> Host:
        """Have compiled code notice patches, however often they come and go; then compile.

        A compiled host runs on without a patch that comes later. So the first patch on one that
        was not prepared throws all compiled code of the process away, that of other models too.
        Once prepared, only this host is compiled anew, and only for a patch it has not yet seen.

        Args:
            sites: Names of those where patches will be attached; none for all that ``sites`` has.
                Those inside layers must be named.

        Returns:
            The host itself. What was put on its modules does nothing and stays; copies have none.

        Raises:
            VlmEditError: An unknown site, or no adapter.

        Example:
            >>> import torch
            >>> from vlm_edit import Host, zoo
            >>> host = Host.of(*zoo.load_host()).prepare("joint")
            >>> compiled = torch.compile(host.model)
        """
        plugged("prepare")(self, sites or None)
        return self

    def run(self, values: Mapping[str, Any]) -> None:
        """Have what ``inputs`` made pass its sites, for what is read there.

        A pipeline whose call no prompt makes encodes its prompts, and draws nothing.

        Args:
            values: As ``Inputs`` has them.
        """
        if isinstance(self.root, PipelineHost) and self.prompt is None:
            encode(self.root, self.adapter.pipeline, values["prompt"])
        else:
            self(**values, **self.uncached)

    @property
    def _only_encodes(self) -> bool:
        return self.is_pipeline and self.prompt is None

    @property
    def kind(self) -> type:
        """Return the model's class, or the pipeline's."""
        return class_of(self.root)

    @property
    def is_pipeline(self) -> bool:
        """Whether it is the models of a pipeline."""
        return isinstance(self.root, PipelineHost)

    @cached_property
    def adapter(self) -> Adapter:
        """Return what declares its sites.

        Raises:
            UnknownName: None is registered for its kind, nor does it keep the conventions.
        """
        return self._given or find_adapter(self.root)

    @property
    def sites(self) -> Mapping[str, Site]:
        """Return every site by name, in the adapter's order, layers in theirs.

        They are looked up once, and again when the host has put other modules in their place.

        Raises:
            VlmEditError: No adapter for its kind, none of a site's module paths exists, or its
                width is not known.
        """
        self._refresh()
        if not all(map(self._stands, self._sites.values())) or not self._sites:
            self._sites = resolve(self.root, self.adapter)
        return self._sites

    def site(self, name: str) -> Site:
        """Return the site of a name, or one inside a layer, as ``inside`` lists them.

        ``language.1+language.3`` is both side by side, for what reads several.

        Raises:
            UnknownName: It has no such site; the message lists those it has.
            BadArgument: Sites that do not stand side by side.

        Example:
            >>> from vlm_edit import Host, zoo
            >>> host = Host.of(*zoo.load_host())
            >>> host.site("text.0.attention").width, host.site("text.0.head.3").width
            (160, 32)
        """
        self._refresh()
        site = self._sites.get(name) or self._inner.get(name)
        if site is not None and self._stands(site):
            return site
        sites = self.sites
        if name in sites:
            return sites[name]
        if BESIDE in name:
            return side_by_side([self.site(part) for part in name.split(BESIDE)])
        layer = layer_of(name)
        if layer != name and layer in sites:
            return self._inside(sites[layer], name)
        raise UnknownName(
            f"{self.kind.__name__} has no site {name!r}; its sites are {abridged(list(sites))}"
        )

    def inside(self, name: str) -> Mapping[str, Site]:
        """Return the sites inside a layer, by name; nothing where its parts cannot be told.

        They are what its attention and its MLP add to the stream, before any norm that follows,
        the places around the MLP (``mid``, ``mlp_in``, ``mlp_out``), and what each head gives to
        the output projection.

        Args:
            name: A layer's, such as ``language.3``.

        Raises:
            UnknownName: It has no such site.

        Example:
            >>> from vlm_edit import Host, zoo
            >>> abridged(list(Host.of(*zoo.load_host()).inside("vision.0")))
            'vision.0.attention, vision.0.mlp, vision.0.mid, vision.0.mlp_in, vision.0.mlp_out, ...'
        """
        return sites_inside(self.site(name))

    def _inside(self, layer: Site, name: str) -> Site:
        found = sites_inside(layer)
        if name not in found:
            has = f"has {abridged(list(found))}" if found else "has no parts that are known"
            raise UnknownName(
                f"{self.kind.__name__} has no site {name!r}: {layer.name} is a "
                f"{type(layer.taps[0].module).__name__} that {has} inside"
            )
        self._inner[name] = found[name]
        return found[name]

    def _refresh(self) -> None:
        """Take up the models that a pipeline holds by now."""
        if self.is_pipeline and self.model is not self.root:
            unwrap(self.model)

    def _stands(self, site: Site) -> bool:
        """Return whether a site's modules are still those at its paths."""
        return all(find_module(self.root, tap.owner) is tap.module for tap in site.taps)

    @property
    def name(self) -> str | None:
        """Return what transformers loaded it from, a name on the hub or a path; else None."""
        name = getattr(getattr(self.root, "config", None), "_name_or_path", None)
        return name if isinstance(name, str) and name else None

    @property
    def hub_name(self) -> str | None:
        """Return its ``owner/name`` on the hub; None for a path, which concerns nobody else."""
        name = self.name
        return name if name and HUB_NAME.fullmatch(name) and not os.path.exists(name) else None

    @property
    def licence(self) -> str | None:
        """Return the licence that its config or its page here states; None where none is known."""
        stated = getattr(getattr(self.root, "config", None), "license", None)
        if isinstance(stated, str) and stated:
            return stated
        return licence_of(self.name) if self.name else None

    @property
    def text_limit(self) -> int | None:
        """Return how many tokens a text may have, as its config says; None where it does not."""
        config = getattr(self.root, "config", None)
        limit = getattr(getattr(config, "text_config", config), "max_position_embeddings", None)
        return limit if isinstance(limit, int) else None

    @property
    def device(self) -> torch.device:
        """Return the device of its first weight, or where that is brought to run."""
        return device_of(self.root)

    @property
    def template(self) -> Template | None:
        """Return the words around each pair's text; None where a function makes the inputs.

        Raises:
            VlmEditError: It has no processor, or a prompt that it does not understand.
        """
        return self.maker.template(False)

    def asks(self, answer: bool = False) -> str:
        """Return what each pair is put into: the template, or the name of the function.

        Args:
            answer: Whether it is to answer.

        Raises:
            VlmEditError: As ``template``.
        """
        return self.maker.words(answer)

    def special_ids(self, site: str) -> tuple[int, ...] | None:
        """Return ids of tokens that are no words, as the tokenizer says; None where there is none.

        Args:
            site: Where they pass: a pipeline has a tokenizer for each of its encoders.
        """
        own = self._own_tokenizer(site)
        found = None if own is None else special_ids(own)
        return self._maker.special if found is None else found

    def tokenizer(self, site: str) -> Any | None:
        """Return the tokenizer of what passes at a site; None where the host has none.

        Args:
            site: Its name: a pipeline has a tokenizer for each of its encoders.
        """
        own = self._own_tokenizer(site)
        there = getattr(self.processor, "tokenizer", self.processor) if own is None else own
        return there if hasattr(there, "convert_ids_to_tokens") else None

    def _own_tokenizer(self, site: str) -> Any | None:
        if isinstance(self.root, PipelineHost) and self.adapter.pipeline:
            encoder = self.adapter.pipeline.encoder(self.site(site).taps[0].owner)
            if encoder is not None and encoder.tokenizer:
                return getattr(self.root.pipeline, encoder.tokenizer, None)
        return None

    @property
    def maker(self) -> InputMaker:
        """Return what makes its inputs, wherever it is; worker processes take it along.

        Raises:
            CannotKnow: It has no processor.
        """
        if not self._only_encodes:
            self.expect_processor("reading pairs")
        return self._maker

    def read_back(self, values: Mapping[str, Any]) -> str | None:
        """Return the first row of some inputs as the text it is; None without a tokenizer."""
        return read_back(values, self.processor)

    @cached_property
    def uncached(self) -> dict[str, bool]:
        """Return the arguments without which its forward keeps every layer's keys and values."""
        takes = inspect.signature(self.root.forward).parameters
        return (
            {"use_cache": False} if hasattr(self.root, "generate") or "use_cache" in takes else {}
        )

    def expect_width(self, site: Site, width: int) -> None:
        """Refuse a dictionary of another width than the site's.

        Raises:
            WrongHost: The widths differ.
        """
        if width != site.width:
            raise WrongHost(
                f"the dictionary is {width} wide, site {site.name!r} of {self.kind.__name__} is "
                f"{site.width}: it belongs to another site or host"
            )

    def expect_eval(self, otherwise: str) -> None:
        """Refuse a host in train mode.

        Args:
            otherwise: What dropout would do, for the message.

        Raises:
            BadArgument: It is in train mode.
        """
        if self.root.training:
            raise BadArgument(
                f"{self.kind.__name__} is in train mode, where dropout makes {otherwise}: call "
                "model.eval()"
            )

    def expect_processor(self, needs: str) -> Any:
        """Return the processor, which must be there.

        Args:
            needs: What needs one, for the message.

        Raises:
            CannotKnow: It has none.
        """
        if self.processor is None and self.prompt is None:
            raise CannotKnow(
                f"{needs} needs the host's processor, and {self._missing}; pass "
                "Host.of(model, processor)"
            )
        return self.processor

    def inputs(
        self, images: Sequence[Image.Image], texts: Sequence[str], answer: bool = False
    ) -> Inputs:
        """Make what the host's forward, or its ``generate``, takes for some pairs.

        As long as they are there it is known which of their tokens are the texts' own: an edit of
        text tokens leaves the rest of the prompt alone.

        Args:
            images: RGB.
            texts: One for each.
            answer: Whether it is to answer: a chat template then begins its turn.

        Raises:
            CannotKnow: The host has no processor.
            BadArgument: A prompt that it does not understand.

        Example:
            >>> from vlm_edit import Host, zoo
            >>> host, pairs = Host.load("zoo:emoji-llava", device="cpu"), zoo.load_pairs()
            >>> inputs = host.inputs([pairs.open(0)], ["a cat"])
            >>> host.processor.tokenizer.decode(inputs.values["input_ids"][inputs.caption])
            'a cat'
        """
        return self.receive(self.maker.inputs(images, texts, answer))

    def receive(self, made: Inputs) -> Inputs:
        """Put what ``maker`` made where the host is, and know the texts' tokens from then on."""
        values, caption = self.place(made.values), made.caption
        if caption is not None:
            caption = caption.to(values["input_ids"].device)
            remember(values["input_ids"], caption)
        return Inputs(values, made.cut, caption)

    def place(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Put inputs on the host's device, and floating ones into its dtype."""
        weight = next(p for p in self.root.parameters() if p.is_floating_point())

        def put(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.to(self.device, weight.dtype if value.is_floating_point() else None)

        return {name: put(value) for name, value in inputs.items()}


def find_sites(host: Model | Host) -> Mapping[str, Site]:
    """Return every site of a host, by name.

    Args:
        host: A host, a model or a pipeline of models.

    Returns:
        Sites in the adapter's order, layers in theirs.

    Raises:
        VlmEditError: No adapter for this kind of host, none of a site's module paths exists, or
            its width is not known.

    Example:
        >>> from vlm_edit import zoo
        >>> model, _ = zoo.load_host()
        >>> list(find_sites(model))[:2]
        ['joint', 'vision.0']
    """
    return Host.of(host).sites
