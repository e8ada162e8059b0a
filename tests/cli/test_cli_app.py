"""``vlm-edit app``: what it loads and refuses, and that it serves until interrupted."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from vlm_edit import Ablate, Patch, zoo
from vlm_edit.app import Desk
from vlm_edit.cli import kept, main, serving
from vlm_edit.measuring import load_measurement

pytest.importorskip("gradio", reason="needs gradio: pip install gradio")
ROOT = Path(__file__).resolve().parents[2]
LLAVA = ["zoo:emoji-llava", "--dictionary", "zoo:language.0"]
CLIP = ["zoo:emoji-clip", "--dictionary", "zoo:joint"]


class Stub:
    """A server that is over at once."""

    url, public = "http://127.0.0.1:1/", None

    def __enter__(self) -> "Stub":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self) -> None:
        pass


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Desk, dict[str, Any]]]:
    """What would be served, and how; nothing is."""
    kept: list[tuple[Desk, dict[str, Any]]] = []

    def serve(desk: Desk, **options: Any) -> Stub:
        kept.append((desk, options))
        return Stub()

    monkeypatch.setattr(serving, "serve", serve)
    return kept


def test_the_zoo_is_served_by_one_command(served, capsys) -> None:
    assert main(["app", *LLAVA, "--measured", "32"]) == 0
    ((desk, options),) = served
    assert (desk.site, desk.shows, desk.run.n_pairs, len(desk.pairs)) == (
        "language.0", "answers", 32, 1024,
    )  # fmt: skip
    assert options["host"] == "127.0.0.1" and options["share"] is False
    assert options["port"] is None and options["patch"] is None and options["most"] == 64
    assert "page:   http://127.0.0.1:1/" in capsys.readouterr().out


def test_a_run_brings_its_own_pairs_classes_and_names(served, tmp_path) -> None:
    run = str(tmp_path / "run")
    assert main(["measure", CLIP[0], "zoo:pairs", *CLIP[1:], "--out", run, "--quiet"]) == 0
    measured = load_measurement(run)
    named = {3: {"name": "red apple", "held": True}, 5: {"name": "noise", "held": False}}
    kept.save_names(tmp_path / "run", named, measured.checksum())
    assert main(["app", *CLIP, "--run", run, "--port", "8123", "--max-new-tokens", "5"]) == 0
    ((desk, options),) = served
    assert desk.names == {3: "red apple"} and desk.name(3).startswith("3 · red apple · ")
    assert desk.shows == "labels" and desk.run.n_pairs == len(desk.pairs) == 1024
    assert (options["port"], options["most"]) == (8123, 5)


def test_a_pipeline_is_edited_in_its_clip(served) -> None:
    pytest.importorskip("diffusers")
    words = ["app", "zoo:emoji-unclip", "--dictionary", "zoo:joint", "--measured", "0"]
    assert main(words) == 0
    ((desk, _),) = served
    assert desk.shows == "drawings" and desk.host.model is desk.pipe.clip and desk.run is None


def test_neurons_are_features_too_and_a_tower_has_no_classes(served, capsys) -> None:
    assert main(["app", CLIP[0], "--dictionary", "neurons", "--site", "vision.1"]) == 0
    ((desk, _),) = served
    assert desk.run is None and desk.n_features == desk.host.site("vision.1").width
    assert "nothing was measured, so no classes: site 'vision.1'" in capsys.readouterr().err


def test_a_patch_to_begin_with_must_fit(served, tmp_path, capsys) -> None:
    host, _ = zoo.load_host()
    file = str(tmp_path / "p.safetensors")
    Patch("joint", zoo.load_dictionary("joint"), Ablate([3])).save(file, host)
    assert main(["app", *CLIP, "--measured", "0", "--patch", file]) == 0
    assert served[0][1]["patch"].bindings[0].splice.rules == (Ablate([3]),)
    assert main(["app", *LLAVA, "--measured", "0", "--patch", file]) == 2
    assert "no site 'joint'" in capsys.readouterr().err and len(served) == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([*CLIP, "--port", "0"], "--port 0: give a number from 1 to 65535"),
        ([*CLIP, "--port", "65536"], "--port 65536"),
        ([*CLIP, "--max-new-tokens", "0"], "--max-new-tokens 0: it must be at least 1"),
        ([*CLIP, "--site", "joints"], "no site 'joints'"),
        (["zoo:emoji-llava", "--dictionary", "zoo:joint"], "name it with --site, one of"),
        ([*CLIP, "--run", "nowhere"], "nowhere"),
        (["zoo:emoji-clip"], "Missing option '--dictionary'"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_served(
    words, told, served, capsys
) -> None:
    assert main(["app", *words]) == 2
    assert told in capsys.readouterr().err and not served


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_interrupted_and_leaves_nothing(tmp_path, number) -> None:
    """Within two minutes, of which gradio's import takes some."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vlm_edit", "app", *CLIP, "--measured", "16", "--quiet"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As a shell starts what is to run in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert url, line + (process.stderr.read() if process.stderr else "")
        start = time.monotonic()
        with urllib.request.urlopen(url[0], timeout=20) as page:
            assert b"Turn features" in page.read()
        assert time.monotonic() - start < 20
        assert list(tmp_path.glob("vlm-edit-app-*"))
        process.send_signal(number)
        assert process.wait(30) == 0
        assert not list(tmp_path.glob("vlm-edit-app-*"))
    finally:
        process.kill()


def test_without_gradio_it_says_so_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *of: None if name == "gradio" else found(name, *of),
    )
    assert main(["app", "nowhere", "--dictionary", "nothing"]) == 2
    assert "needs gradio: pip install 'vlm-edit[app]'" in capsys.readouterr().err
