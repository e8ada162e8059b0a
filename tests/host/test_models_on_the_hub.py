"""Models of repositories: a cache laid out as huggingface_hub does, and a hub of our own."""

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch
from conftest import make_clip
from hub_server import HubHandler

from vlm_edit import zoo

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    make_clip().to(torch.bfloat16).save_pretrained(folder)
    zoo.load_host()[1].save_pretrained(folder)
    return folder


def cached(home: Path, name: str, folder: Path, commit: str, *refs: str) -> None:
    """A commit of a repository in the cache, as huggingface_hub lays it out."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    for ref in refs:
        (repository / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (repository / "refs" / ref).write_text(commit)
    for file in filter(Path.is_file, folder.rglob("*")):
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(file.read_bytes())
        place = repository / "snapshots" / commit / file.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(blob)


LOAD = """
import json, sys
from vlm_edit import Host, VlmEditError
from vlm_edit.host import loaded_as
for name, revision in json.loads(sys.argv[1]):
    try:
        host = Host.load(name, "cpu", revision=revision)
        told = loaded_as(host)
        weight = next(p for p in host.root.parameters() if p.is_floating_point())
        processed = host.processor is not None
        print("did", host.kind.__name__, host.hub_name, told["revision"], processed, weight.dtype)
    except VlmEditError as error:
        print("did", type(error).__name__, error)
"""


def loaded(calls: list[tuple[str, str | None]], code: str = LOAD, **environment: str) -> list[str]:
    """What a fresh interpreter says of each: huggingface_hub reads its settings when imported."""
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(calls)],
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path),
             **environment},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    lines = [line.removeprefix("did ") for line in done.stdout.splitlines() if line[:4] == "did "]
    assert len(lines) == len(calls), done.stderr
    return lines


def test_offline_a_cached_model_is_loaded_by_name_branch_tag_and_commit(
    folder: Path, tmp_path: Path
) -> None:
    newer = tmp_path / "newer"
    make_clip().save_pretrained(newer)
    cached(tmp_path, "owner/name", folder, OLD, "v1", "refs/pr/2")
    cached(tmp_path, "owner/name", newer, NEW, "main")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.md").write_text("#")
    cached(tmp_path, "owner/empty", tmp_path / "empty", OLD, "main")
    calls = [
        ("owner/name", None),
        ("owner/name", "v1"),
        ("owner/name", OLD),
        ("owner/name", "refs/pr/2"),
        ("owner/name", "v2"),
        ("owner/other", None),
        ("owner/empty", None),
    ]
    told = loaded(calls, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert told[0] == f"CLIPModel owner/name {NEW} False torch.float32"
    assert told[1:4] == [f"CLIPModel owner/name {OLD} True torch.bfloat16"] * 3
    assert "revision 'v2' of the repository owner/name is not in the cache" in told[4]
    assert "no model at 'owner/other': there is no such path, and the repository is not" in told[5]
    assert "the repository owner/empty (or what is cached of it) has neither a config" in told[6]


@pytest.mark.slow
def test_offline_a_cached_pipeline_is_loaded_by_name(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from tiny_pipelines import PIPELINES

    PIPELINES["sd"].make().save_pretrained(tmp_path / "pipe")
    cached(tmp_path, "owner/pipe", tmp_path / "pipe", OLD, "main")
    calls = [("owner/pipe", None), ("owner/pipe", OLD), ("owner/pipe", "v2")]
    told = loaded(calls, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert told[:2] == ["StableDiffusionPipeline None None False torch.float32"] * 2
    assert "revision 'v2' of the repository owner/pipe is not in the cache" in told[2]


class Hub(HubHandler):
    """The answers of the hub that loading a model needs, and those with which it refuses."""

    server: Any

    def answer(self, body: bool) -> None:
        path = unquote(self.path.split("?")[0])
        name = next((name for name in REFUSALS if f"/{name}" in path), "")
        status, code, listed = REFUSALS.get(name, (0, "", True))
        info = path.startswith("/api/") and "/tree/" not in path
        if name and not (info and listed):
            headers = {"X-Error-Code": code, "X-Error-Message": "told"} if code else {}
            self.reply(status, b"{}", headers, body)
        elif "/v9" in path:
            self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
        elif "/resolve/" in path:
            data = self.server.files.get(path.split("/resolve/")[-1].partition("/")[2])
            tag = {"X-Repo-Commit": NEW, "ETag": f'"{hashlib.sha256(data or b"").hexdigest()}"'}
            missing = {"X-Error-Code": "EntryNotFound"} if data is None else {}
            self.reply(200 if data is not None else 404, data or b"", tag | missing, body)
        else:
            files = self.server.files
            told: Any = {"id": "owner/name", "sha": NEW, "siblings": []}
            told["siblings"] = [{"rfilename": file} for file in files]
            if "/tree/" in path:
                told = [{"type": "file", "path": f, "size": len(d), "oid": f}
                        for f, d in files.items()]  # fmt: skip
            self.reply(200, json.dumps(told).encode(), {}, body)


# Status, the hub's code, and whether everybody may see which files there are.
REFUSALS: dict[str, tuple[int, str, bool]] = {
    "owner/gated": (403, "GatedRepo", True),
    "owner/closed": (401, "GatedRepo", False),
    "owner/nobody": (404, "RepoNotFound", False),
    "owner/private": (401, "RepoNotFound", False),
    "owner/broken": (503, "", False),
}


@pytest.fixture
def hub(folder: Path) -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files = {file.name: file.read_bytes() for file in folder.iterdir()}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_model_is_fetched_and_what_refuses_is_told_in_a_line(hub: Any, tmp_path: Path) -> None:
    calls: list[tuple[str, str | None]] = [("owner/name", None), ("owner/name", "v9")]
    calls += [(name, None) for name in REFUSALS]
    here = f"http://127.0.0.1:{hub.server_port}"
    told = loaded(calls, HF_HOME=str(tmp_path), HF_ENDPOINT=here)
    assert told[0] == f"CLIPModel owner/name {NEW} True torch.bfloat16"
    assert "the repository owner/name has no such revision" in told[1]
    gated = "is gated: ask for access on its page, then `hf auth login`"
    assert f"the repository owner/gated {gated}" in told[2]
    assert f"the repository owner/closed {gated}" in told[3]
    for line, name in zip(told[4:6], ("owner/nobody", "owner/private"), strict=True):
        assert f"no model at '{name}': there is no such path, and no such repository" in line
    assert "the repository owner/broken cannot be fetched: Server error '503" in told[6]
    again = loaded(calls[:1], HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert again == told[:1]  # what was fetched is in the cache


COMMAND = """
import json, sys
from vlm_edit.cli import main
for words in json.loads(sys.argv[1]):
    print("did", main(words), flush=True)
    print("told", file=sys.stderr, flush=True)
"""


def test_the_command_takes_names_and_revisions(folder: Path, tmp_path: Path) -> None:
    cached(tmp_path, "owner/name", folder, OLD, "main")
    calls: Any = [
        ["sites", "owner/name", "--revision", OLD, "--device", "cpu", "--dtype", "float32"],
        ["sites", "owner/name", "--revision", "v2"],
        ["sites", str(folder), "--revision", "v2"],
    ]
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, json.dumps(calls)],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path), **environment},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    codes = [line for line in done.stdout.splitlines() if line.startswith("did")]
    first, second, third, _ = done.stderr.split("told\n")
    assert codes == ["did 0", "did 2", "did 2"], done.stderr
    assert first == f"vlm-edit: CLIPModel on cpu in float32, commit {OLD[:12]}\n"
    assert second.startswith("vlm-edit: revision 'v2' of the repository owner/name is not in")
    assert "is no repository of the hub: --revision v2 goes with one" in third
    assert second.count("\n") == third.count("\n") == 1


DRAWS = """
import json, sys
from vlm_edit import VlmEditError
from vlm_edit.cli.loading import Loading
from vlm_edit.cli.pipeline import load_pipeline
for name, revision in json.loads(sys.argv[1]):
    try:
        print("did", type(load_pipeline(name, Loading(revision=revision, device="cpu"))).__name__)
    except VlmEditError as error:
        print("did", error)
"""


def test_what_draws_is_loaded_from_the_cache_too(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    zoo.load_unclip().save_pretrained(tmp_path / "unclip")
    cached(tmp_path, "owner/unclip", tmp_path / "unclip", OLD, "main")
    cached(tmp_path, "owner/name", folder, OLD, "main")
    calls = [("owner/unclip", None), ("owner/unclip", OLD), ("owner/unclip", "v2")]
    calls += [("owner/name", None), ("owner/none", None)]
    told = loaded(calls, DRAWS, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert told[:2] == ["UnclipPipeline"] * 2
    assert told[2].startswith("revision 'v2' of the repository owner/unclip is not in the cache")
    assert told[3].startswith("no pipeline at 'owner/name': it must hold a model_index.json")
    assert told[4].startswith("no model at 'owner/none'")
