"""Declare how a model is loaded, once for every verb that takes one; nothing heavy is imported."""

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from typer import Option

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def _option(help: str, *names: str, **more: Any) -> Any:
    return Option(*names, help=help, rich_help_panel="How the model is loaded", **more)


@dataclass(frozen=True, kw_only=True)
class Loading:
    """Say how a model is loaded."""

    revision: Annotated[
        str | None, _option("branch, tag or commit of a model on the hub", metavar="REV")
    ] = None
    device: Annotated[
        str, _option("auto for the best there is, cpu, cuda, cuda:1 or mps", metavar="DEVICE")
    ] = "auto"
    dtype: Annotated[
        Dtype,
        _option("of weights; auto for the checkpoint's own"),
    ] = "auto"
    device_map: Annotated[
        str | None,
        _option("spread it over devices by accelerate: auto or balanced", metavar="MAP"),
    ] = None
    quantize: Annotated[
        Literal["4bit", "8bit"] | None, _option("its linear layers, by bitsandbytes")
    ] = None
    adapter: Annotated[
        str | None,
        _option("of your own, which names its sites; runs that module", metavar="MODULE:NAME"),
    ] = None
    trust_remote_code: Annotated[
        bool,
        _option("run code that the model's folder or repository brings", "--trust-remote-code"),
    ] = False

    def loading(self) -> dict[str, Any]:
        """Return what of the arguments ``Host.load`` takes, by its own names."""
        return {each.name: getattr(self, each.name) for each in fields(Loading)}


@dataclass(frozen=True, kw_only=True)
class Asking(Loading):
    """Say how a model is loaded, and what it is asked with each pair."""

    prompt: Annotated[
        str | None,
        _option(
            "what it is asked with a pair: text with {image} and {text} in it, or chat for its "
            "chat template, the default where it has one",
            metavar="TEMPLATE",
        ),
    ] = None

    def loading(self) -> dict[str, Any]:
        """Return what of the arguments ``Host.load`` takes, by its own names."""
        told = super().loading()
        if self.prompt is not None:  # a shell passes the two characters on
            told["prompt"] = self.prompt.replace("\\n", "\n")
        return told
