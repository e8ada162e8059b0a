"""How a command loads its model: the same options everywhere, and a line that tells what came."""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_clip

from vlm_edit import Ablate, Patch, zoo
from vlm_edit.cli import arguments, main
from vlm_edit.cli.command import VERBS
from vlm_edit.cli.flags import in_flags
from vlm_edit.cli.loading import Loading
from vlm_edit.dictionaries.origin import _INNER
from vlm_edit.ground.errors import BadArgument, UnknownName, VlmEditError
from vlm_edit.measuring import load_measurement

ASKED = ("check", "measure", "maps", "census", "app")  # for a dictionary
TAKING = {kind for kind in VERBS if issubclass(kind, Loading)}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    for part in zoo.load_host():
        part.save_pretrained(folder)
    return folder


def test_every_verb_with_a_model_takes_the_same_options() -> None:
    with_model = {kind for kind in VERBS if {"model", "pipeline"} & {f.name for f in fields(kind)}}
    assert with_model == TAKING and arguments.Draw in TAKING and arguments.Apply in TAKING
    names = {f"--{each.name.replace('_', '-')}" for each in fields(Loading)}
    assert names == {
        *("--revision", "--device", "--dtype", "--device-map", "--quantize", "--adapter"),
        "--trust-remote-code",
    }


@pytest.mark.parametrize("kind", sorted(TAKING, key=str), ids=lambda kind: kind.__name__)
def test_what_is_typed_of_loading_is_what_a_host_is_loaded_with(
    kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    for where in VERBS.values():
        monkeypatch.setattr(f"vlm_edit.cli.{where}", lambda options: given.append(options) or 0)
    module, verb = VERBS[kind].split(".")
    words = ["patch", verb] if module == "patching" else [verb]
    needed = {"sites": 1, "doctor": 1, "draw": 1, "name": 1, "app": 1, "ask": 3}.get(verb, 2)
    words += ["m", "p", "q"][:needed]
    words += ["--dictionary", "d"] if verb in ASKED else []
    words += ["--site", "s"] if verb == "maps" else []
    words += ["--out", "o"] if verb in ("train", "collect") else []
    words += ["--revision", "v1", "--device", "cuda:1", "--dtype", "float16", "--quantize", "4bit"]
    words += ["--device-map", "balanced", "--adapter", "a:b", "--trust-remote-code"]
    assert main(words) == 0
    assert given[0].loading() == {
        "revision": "v1", "device": "cuda:1", "dtype": "float16", "quantize": "4bit",
        "device_map": "balanced", "adapter": "a:b", "trust_remote_code": True,
    }  # fmt: skip
    assert Loading().loading() == {
        "revision": None, "device": "auto", "dtype": "auto", "quantize": None,
        "device_map": None, "adapter": None, "trust_remote_code": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "CLIPModel on {best} in float32"),
        (["--device", "cpu", "--dtype", "bfloat16"], "CLIPModel on cpu in bfloat16"),
        (["--device", "cpu", "--quantize", "8bit"],
         "CLIPModel on cpu in float32, bitsandbytes 8bit"),
        (["--device-map", "auto"], "CLIPModel on {best} in float32"),
    ],
)  # fmt: skip
def test_a_line_on_standard_error_tells_what_was_loaded(
    options: list[str], told: str, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = "cuda:0" if torch.cuda.is_available() else "cpu"
    assert main(["sites", str(clip), *options]) == 0
    said = capsys.readouterr()
    assert said.err == f"vlm-edit: {told.format(best=best)}\n"
    assert said.out.startswith("Sites of CLIPModel") and "float32" not in said.out


@pytest.mark.slow
def test_a_run_says_how_its_host_was_loaded_and_goes_on_only_so(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["measure", str(clip), "zoo:pairs", "--dictionary", "zoo:joint", "--out", str(out)]
    words += ["--device", "cpu"]
    assert main([*words, "--dtype", "bfloat16", "--part", "1/2"]) == 0
    capsys.readouterr()
    assert main([*words, "--part", "1/2"]) == 2
    assert "another host (dtype: bfloat16, here float32)" in capsys.readouterr().err
    assert main([*words, "--dtype", "bfloat16", "--part", "2/2"]) == 0
    host = load_measurement(out).provenance["host"]
    assert (host["dtype"], host["quantization"], host["revision"]) == ("bfloat16", None, None)


def test_a_patch_is_checked_and_its_own_revision_is_another_option(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patch = str(tmp_path / "patch.safetensors")
    Patch("joint", zoo.load_dictionary("joint"), Ablate([1])).save(patch, zoo.load_host()[0])
    words = ["patch", "apply", str(clip), patch, "--device", "cpu"]
    assert main([*words, "--dtype", "bfloat16"]) == 0
    assert main([*words, "--patch-revision", "v1"]) == 2
    assert "revision" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_a_bias_an_attack_and_a_drawing_take_another_dtype(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = ["--device", "cpu", "--dtype", "bfloat16"]
    words = ["attack", str(clip), "zoo:pairs", "--most", "4", "--eps", "1", "--steps", "2"]
    assert main([*words, "--queries", "0", "--out", str(tmp_path / "attack"), *half]) == 0
    assert "CLIPModel on cpu in bfloat16" in capsys.readouterr().err
    told = json.loads((tmp_path / "attack" / "attack.json").read_text("utf-8"))["arguments"]
    assert told["dtype"] == "bfloat16"
    pytest.importorskip("diffusers")
    draw = ["draw", "a picture of red apple", "--rule", "scale", "--class", "cross", "--steps", "1"]
    draw += ["--strength", "0", "--out", str(tmp_path / "a.png")]
    assert main([*draw, *half]) == 0
    assert "UnclipPipeline on cpu in bfloat16" in capsys.readouterr().err
    assert main([*draw, "--overwrite", "--adapter", "a:b"]) == 2
    assert "leave --adapter out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cpu", "--device-map", "auto"], "--device cpu and --device-map auto both"),
        (["--device", "nowhere"], "device 'nowhere' is none that torch knows"),
        (["--device", "cuda:99"], "device 'cuda:99' cannot be used here"),
        (["--device-map", "nonsense"], "cannot load it: When passing device_map as a string"),
        (["--adapter", "json:dumps"], "--adapter json:dumps is a function, not an Adapter"),
        (["--adapter", "nowhere:x"], "--adapter nowhere:x: nowhere cannot be imported"),
    ],
)
def test_what_cannot_be_loaded_is_told_in_a_line_in_words_of_the_command(
    options: list[str], message: str, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sites", str(clip), *options]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and not said.out


def test_a_host_without_a_processor_or_an_adapter_is_told_what_a_command_can_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_clip().save_pretrained(tmp_path)
    assert main(["check", str(tmp_path), "zoo:pairs", "--dictionary", "neurons"]) == 2
    told = capsys.readouterr().err
    assert "needs the host's processor" in told and "Host.of" not in told
    from transformers import XLMConfig, XLMModel

    XLMModel(XLMConfig(emb_dim=8, n_heads=2, n_layers=1, vocab_size=8)).save_pretrained(
        tmp_path / "xlm"
    )
    assert main(["sites", str(tmp_path / "xlm")]) == 2
    told = capsys.readouterr().err
    assert "no adapter for XLMModel" in told and "--adapter MODULE:NAME" in told
    assert "Host.of" not in told


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("with trust_remote_code=True.", "with --trust-remote-code."),
        ("revision='v1' goes with one", "--revision v1 goes with one"),
        ("device_map={'': 'cpu'}; more", "--device-map {'': 'cpu'}; more"),
        ("patch_revision='v1'", "patch_revision='v1'"),
        (f"nothing; {_INNER}", "nothing; --any-origin lets it through"),
    ],
)
def test_what_the_library_advises_is_told_in_flags(theirs: str, ours: str) -> None:
    with pytest.raises(UnknownName, match=f"^{re.escape(ours)}$"), in_flags():
        raise UnknownName(theirs)


def test_a_dictionary_of_another_family_is_warned_of_in_a_line(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    from vlm_edit.dictionaries import save_saelens

    named = replace(zoo.load_dictionary("joint"), info={"model_name": "Qwen2.5-VL-7B-Instruct"})
    save_saelens(named, tmp_path / "sae")
    words = ["check", str(clip), "zoo:pairs", "--dictionary", str(tmp_path / "sae")]
    main([*words, "--device", "cpu"])
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(lines) == 1 and lines[0].startswith("vlm-edit: warning: the dictionary says that")
    assert "'Qwen2.5-VL-7B-Instruct' (qwen2_5_vl)" in lines[0] and "(clip)" in lines[0]


def test_an_error_keeps_its_kind() -> None:
    for kind in (BadArgument, VlmEditError):
        with pytest.raises(kind), in_flags():
            raise kind("x")
