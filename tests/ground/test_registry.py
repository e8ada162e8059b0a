"""Rules and formats of others: added by a decorator or an entry point, refused where unusable."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from vlm_edit import Ablate, Patch, load_patch, zoo
from vlm_edit.edits import RULES, Rule, register_rule, rule_from_dict
from vlm_edit.ground.errors import BadArgument, UnknownName, VlmEditError, VlmEditWarning
from vlm_edit.ground.registry import Registry

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Halve(Rule):
    """A rule of a user's own."""

    kind: ClassVar[str] = "halve"
    times: int = field(default=1, kw_only=True)

    def target(self, code: torch.Tensor) -> torch.Tensor:
        return code / 2**self.times


@pytest.fixture
def halve() -> Iterator[type[Rule]]:
    yield register_rule(Halve)
    RULES.remove("halve")


DICTIONARY = zoo.load_dictionary("joint")


def patch_of(rule: Rule) -> Patch:
    return Patch("joint", DICTIONARY, rule)


def test_a_rule_of_ones_own_is_saved_and_comes_back(halve: Any, tmp_path: Path) -> None:
    host, processor = zoo.load_host()
    inputs = processor(text=["a cat"], return_tensors="pt")
    plain = host.get_text_features(**inputs).pooler_output
    (fires,) = DICTIONARY.encode(plain.detach(), "text").topk(1).indices.tolist()
    saved = patch_of(halve(fires, times=2))
    saved.save(tmp_path / "patch", host)
    loaded = load_patch(tmp_path / "patch")
    assert loaded.bindings[0].splice.rules == (Halve(fires, times=2),)
    outputs = []
    for patch in (saved, loaded):
        with patch.attach(host):
            outputs.append(host.get_text_features(**inputs).pooler_output)
    assert torch.equal(*outputs)
    assert not torch.equal(outputs[0], plain)


def test_a_rule_that_nobody_could_load_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    host, _ = zoo.load_host()
    with pytest.raises(BadArgument, match="Halve is not registered .*register_rule"):
        patch_of(Halve([7])).save(tmp_path / "patch", host)
    assert not list(tmp_path.iterdir())


def test_a_subclass_of_a_rule_does_not_pass_for_it(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Half(Ablate):
        def target(self, code: torch.Tensor) -> torch.Tensor:
            return code / 2

    host, _ = zoo.load_host()
    with pytest.raises(BadArgument, match="Half is not registered"):
        patch_of(Half([7])).save(tmp_path / "patch", host)


def test_a_rule_whose_values_do_not_come_back_is_refused(tmp_path: Path, request: Any) -> None:
    @dataclass(frozen=True)
    class Lossy(Rule):
        kind: ClassVar[str] = "lossy"
        amount: float = field(default=1.0, kw_only=True)

        def target(self, code: torch.Tensor) -> torch.Tensor:
            return code + self.amount

        def to_dict(self) -> dict[str, Any]:
            return super().to_dict() | {"amount": round(self.amount)}

    register_rule(Lossy)
    request.addfinalizer(lambda: RULES.remove("lossy"))
    host, _ = zoo.load_host()
    patch_of(Lossy([7], amount=2.0)).save(tmp_path / "good", host)
    with pytest.raises(BadArgument, match=r"Lossy would come back from a file as .*amount=0"):
        patch_of(Lossy([7], amount=0.25)).save(tmp_path / "patch", host)
    assert not (tmp_path / "patch").exists()


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: int, "is no rule: inherit from"),
        (lambda: dataclass(frozen=True)(type("A", (Rule,), {})), "A needs a kind of its own"),
        (lambda: type("B", (Rule,), {"kind": "b"}), "B must be a dataclass itself"),
        (
            lambda: dataclass(frozen=True)(type("C", (Rule,), {"kind": "ablate"})),
            "a rule 'ablate' is there already",
        ),
    ],
)
def test_what_cannot_be_a_rule_is_refused_by_the_decorator(make: Any, named: str) -> None:
    with pytest.raises(BadArgument, match=named):
        register_rule(make())
    assert RULES.find("ablate") is Ablate


def test_a_rule_may_be_registered_again_when_its_module_is_loaded_again(halve: Any) -> None:
    assert register_rule(halve) is halve


def test_an_unknown_rule_is_named_with_those_known() -> None:
    with pytest.raises(UnknownName, match="unknown rule 'halve'; known rules: ablate, .*install"):
        rule_from_dict({"kind": "halve", "features": [1], "strength": 1.0})
    with pytest.raises(UnknownName, match="unknown rule 3"):
        rule_from_dict({"kind": 3})


# Entry points, of a distribution that lies in a folder


def distribution(folder: Path, name: str, points: str, module: str = "") -> None:
    info = folder / f"{name}-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(points)
    if module:
        (folder / f"{name}.py").write_text(module)


OWN = """
from dataclasses import dataclass
from typing import ClassVar
import torch
from vlm_edit.dictionaries import Format, Rows, StoredDictionary
from vlm_edit.edits import Rule

@dataclass(frozen=True)
class Halve(Rule):
    kind: ClassVar[str] = "halve"
    def target(self, code):
        return code / 2

def read(source, hints):
    rows = Rows(torch.eye(3))
    return StoredDictionary(rows, torch.zeros(3), rows, torch.zeros(3))

FORMAT = Format("eye", "eye.txt", lambda source: source.has("eye.txt"), read)
"""


def ask(code: str, folder: Path) -> Any:
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "always",
            "-c",
            f"import json, sys\nsys.path.insert(0, {str(folder)!r})\n{code}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_another_distribution_brings_a_rule_and_a_format(tmp_path: Path) -> None:
    points = "[vlm_edit.rules]\nhalve = mine:Halve\n[vlm_edit.formats]\neye = mine:FORMAT\n"
    distribution(tmp_path / "site", "mine", points, OWN)
    (tmp_path / "sae").mkdir()
    (tmp_path / "sae" / "eye.txt").write_text("")
    answer, _ = ask(
        "from vlm_edit import load_dictionary\n"
        "from vlm_edit.edits import rule_from_dict\n"
        "rule = rule_from_dict({'kind': 'halve', 'features': [1], 'strength': 1.0})\n"
        f"print(json.dumps([repr(rule), load_dictionary({str(tmp_path / 'sae')!r}).width]))",
        tmp_path / "site",
    )
    assert answer == ["Halve(features=(1,), strength=1.0)", 3]


def test_a_distribution_that_is_broken_does_not_stop_what_is_not_its_own(tmp_path: Path) -> None:
    points = "[vlm_edit.rules]\nbroken = absent:Rule\n[vlm_edit.formats]\nbroken = absent:FORMAT\n"
    distribution(tmp_path, "theirs", points)
    answer, warned = ask(
        "from vlm_edit import load_dictionary, zoo\n"
        "from vlm_edit.edits import rule_from_dict\n"
        "from pathlib import Path\n"
        "width = zoo.load_dictionary('joint').width\n"
        "rule = rule_from_dict({'kind': 'ablate', 'features': [1], 'strength': 1.0})\n"
        "try:\n"
        "    rule_from_dict({'kind': 'broken'})\n"
        "except Exception as error:\n"
        "    told = f'{type(error).__name__}: {error}'\n"
        "print(json.dumps([width, rule.kind, told]))",
        tmp_path,
    )
    width, kind, told = answer
    assert (width, kind) == (zoo.load_dictionary("joint").width, "ablate")
    assert told.startswith(
        "VlmEditError: the rule 'broken' (absent:Rule, of theirs) cannot be imported"
    )
    assert "VlmEditWarning: left out: the format 'broken' (absent:FORMAT, of theirs)" in warned


def test_two_distributions_that_bring_one_name_are_both_named(tmp_path: Path) -> None:
    for name in ("mine", "yours"):
        distribution(tmp_path, name, f"[vlm_edit.rules]\nhalve = {name}:Halve\n", OWN)
    answer, _ = ask(
        "from vlm_edit.edits import rule_from_dict\n"
        "try:\n"
        "    rule_from_dict({'kind': 'halve', 'features': [1], 'strength': 1.0})\n"
        "except ValueError as error:\n"
        "    print(json.dumps(str(error)))",
        tmp_path,
    )
    assert "two rules are registered for 'halve': " in answer
    assert "mine:Halve (mine)" in answer and "yours:Halve (yours)" in answer


def test_a_distribution_that_takes_a_name_of_ours_is_told_when_a_rule_is_looked_up(
    tmp_path: Path,
) -> None:
    distribution(tmp_path, "mine", "[vlm_edit.rules]\nablate = mine:Halve\n", OWN)
    answer, _ = ask(
        "from vlm_edit.edits import RULES\n"
        "read = RULES._points is not None\n"
        "try:\n"
        "    RULES.find('ablate')\n"
        "except ValueError as error:\n"
        "    print(json.dumps([read, str(error)]))",
        tmp_path,
    )
    assert answer == [False, "a rule 'ablate' is declared by mine; rename yours"]


# The registry itself


def test_a_registry_refuses_other_kinds_and_no_name() -> None:
    numbers: Registry[int] = Registry("number", "vlm_edit.numbers", int)
    numbers.add("one", 1)
    with pytest.raises(BadArgument, match="what is registered as 'two' is '2', which is no int"):
        numbers.add("two", "2")  # type: ignore[arg-type]
    with pytest.raises(BadArgument, match="the name of a number must be a word, got ''"):
        numbers.add("", 1)
    with pytest.raises(BadArgument, match="a number 'one' is there already: 1; rename yours"):
        numbers.add("one", 2)
    assert list(numbers) == [1] and numbers.names() == ("one",)
    assert repr(numbers) == "Registry(number: one)"


def test_errors_of_registries_are_of_the_library() -> None:
    assert issubclass(UnknownName, VlmEditError) and issubclass(VlmEditWarning, UserWarning)
