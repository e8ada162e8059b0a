"""The conformance suites pass what holds, and say of each thing that does not what it is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import make_clip, random_dictionary
from safetensors.torch import load_file, save_file
from tiny_hosts import FAMILIES
from torch import Tensor, nn

from vlm_edit import Ablate, Adapter, Clamp, Host, Keep, Project, Scale, Steer
from vlm_edit.dictionaries import Format, Rows, StoredDictionary, formats, save_saelens
from vlm_edit.edits import RULES, Blend, Cap, Detect, Rule, register_rule
from vlm_edit.testing import check_adapter, check_format, check_rule

# Rules


@pytest.mark.parametrize(
    "rule",
    [
        Ablate([1, 4]),
        Blend([1, 4], [0.5, 2.0]),
        Cap([1, 4], 0.2),
        Clamp([0], 3.0),
        Detect([1, 2], [0.5] * 12),
        Keep([1, 4]),
        Project([1, 4]),
        Scale([1, 4], 2.5),
        Steer([1, 4], 2.0),
        Steer([1, 4], 0.1, relative=True),
    ],
    ids=lambda rule: f"{rule.kind}{'-relative' * getattr(rule, 'relative', False)}",
)
def test_every_rule_of_ours_holds(rule: Rule) -> None:
    check_rule(rule)


@dataclass(frozen=True)
class Own(Rule):
    """Twice the code, whatever a subclass breaks of it."""

    kind: ClassVar[str] = "own"
    unsaved: float = field(default=0.0, kw_only=True)

    def target(self, code: Tensor) -> Tensor:
        return 2 * code


@pytest.fixture
def registered() -> Iterator[Callable[[type[Rule]], type[Rule]]]:
    yield register_rule
    RULES.remove("own")


def test_a_rule_of_ones_own_holds(registered: Any) -> None:
    check_rule(registered(Own)([1, 4]))


BROKEN = {
    "changes the hidden state": (
        "makes NaN or infinity",
        {"target": lambda self, code: code / 0},  # noqa: ARG005
    ),
    "does nothing": ("changes nothing of random", {"target": lambda self, code: code}),  # noqa: ARG005
    "acts at strength 0": (
        "changes something at strength 0",
        {"__call__": lambda self, code: 2 * code},  # noqa: ARG005
    ),
    "is not linear in the strength": (
        "at strength .5 does not go half the way",
        {"__call__": lambda self, code: (1 + self.strength**2) * code},
    ),
    "looks at other tokens": (
        "acts on a token otherwise where others stand beside it",
        {"target": lambda self, code: code - code.mean((0, 1), keepdim=True)},  # noqa: ARG005
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_rule_that_breaks_a_promise_is_told_which(what: str, registered: Any) -> None:
    message, methods = BROKEN[what]
    rule = registered(dataclass(frozen=True)(type("Own", (Own,), {**methods, "kind": "own"})))
    with pytest.raises(AssertionError, match=message):
        check_rule(rule([1, 4]))


def test_a_rule_that_nobody_registered_is_told_so() -> None:
    with pytest.raises(AssertionError, match="Own is not registered as a rule"):
        check_rule(Own([1, 4]))
    with pytest.raises(AssertionError, match=r"int is no vlm_edit.edits.Rule"):
        check_rule(3)  # type: ignore[arg-type]


# Formats


@pytest.mark.parametrize("activation", ["relu", "topk", "jumprelu"])
def test_a_dictionary_that_was_saved_holds(activation: str, tmp_path: Path) -> None:
    save_saelens(random_dictionary(12, activation=activation), tmp_path / "sae")
    check_format(tmp_path / "sae")
    check_format(tmp_path / "sae", "saelens")


def test_a_folder_that_is_no_dictionary_does_not_hold(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="does not load: .*"):
        check_format(tmp_path)


@pytest.fixture
def halved() -> Iterator[None]:
    """A format that reads a file of weights however much of it is there."""

    def read(source: Any, hints: Any) -> StoredDictionary:  # noqa: ARG001
        data = (source.path / "weights.raw").read_bytes()
        weight = torch.frombuffer(bytearray(data[: 4 * 36]), dtype=torch.float32).reshape(6, 6)
        rows = Rows(weight)
        return StoredDictionary(rows, torch.zeros(6), rows, torch.zeros(6))

    known = Format("raw", "weights.raw", lambda s: (s.path / "weights.raw").is_file(), read)
    formats.register_format(known)
    yield
    formats.FORMATS.remove("raw")


@pytest.mark.usefixtures("halved")
def test_a_format_that_falls_over_a_cut_off_file_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "weights.raw").write_bytes(torch.eye(6).numpy().tobytes())
    with pytest.raises(AssertionError, match="half of weights.raw gives a .*Error, not a VlmEdit"):
        check_format(tmp_path)


def test_weights_that_are_no_numbers_are_told(tmp_path: Path) -> None:
    save_saelens(random_dictionary(6), tmp_path / "sae")
    file = tmp_path / "sae" / "sae_weights.safetensors"
    tensors = load_file(file)
    tensors["W_enc"][0, 0] = float("nan")
    save_file(tensors, file)
    with pytest.raises(AssertionError, match="NaN|not finite"):
        check_format(tmp_path / "sae")


# Adapters


@pytest.mark.parametrize("name", ["clip", "llava", "siglip", "gemma3"])
def test_adapters_of_ours_hold(name: str) -> None:
    family = FAMILIES[name]
    check_adapter(Host.of(family.make().eval()), family.inputs())


class Two(nn.Module):
    """Two layers, of which a flag says whether the second is read."""

    def __init__(self, read: bool = True) -> None:
        super().__init__()
        self.first, self.second, self.read = nn.Linear(3, 4), nn.Linear(4, 4), read

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = self.second(first)
        return second if self.read else first


ADAPTER = Adapter.of({"first": ("first", "image", 4), "second": ("second", "image", 4)})


def test_an_adapter_of_ones_own_holds() -> None:
    check_adapter(Host.of(Two().eval(), adapter=ADAPTER), {"x": torch.ones(2, 3)})


def test_a_layer_that_is_never_read_is_told() -> None:
    with pytest.raises(AssertionError, match="an edit at 'second' changes nothing the host gives"):
        check_adapter(Host.of(Two(read=False).eval(), adapter=ADAPTER), {"x": torch.ones(2, 3)})


def test_a_width_that_is_not_the_modules_is_told() -> None:
    wrong = Adapter.of({"first": ("first", "image", 5)})
    with pytest.raises(AssertionError, match="an edit at 'first' fails"):
        check_adapter(Host.of(Two().eval(), adapter=wrong), {"x": torch.ones(2, 3)})


def test_a_host_in_train_mode_or_at_random_is_told() -> None:
    with pytest.raises(AssertionError, match="CLIPModel is in train mode"):
        check_adapter(make_clip().train(), {})

    class Random(Two):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.rand(4)

    with pytest.raises(AssertionError, match="the host is random"):
        check_adapter(Host.of(Random().eval(), adapter=ADAPTER), {"x": torch.ones(2, 3)})


def test_a_module_that_the_forward_does_not_run_is_told() -> None:
    class Beside(Two):
        def forward(self, x: Tensor) -> Tensor:
            return self.first(x)

    with pytest.raises(AssertionError, match="nothing was edited at 'second'"):
        check_adapter(Host.of(Beside().eval(), adapter=ADAPTER), {"x": torch.ones(2, 3)})


class Compared(nn.Module):
    """A host that gives the cosine of two streams' embeddings only."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cosine_similarity(self.image(x), self.text(y))


def test_a_site_that_only_a_cosine_reads_is_not_called_dead() -> None:
    adapter = Adapter.of({"joint": [("image", "image", 4), ("text", "text", 4)]})
    host = Host.of(Compared().eval(), adapter=adapter)
    check_adapter(host, {"x": torch.eye(3), "y": torch.eye(3).flip(0)})
