"""Repositories of the hub: a cache laid out as huggingface_hub does, and a hub of our own."""

import hashlib
import json
import socket
import subprocess
import sys
import threading
from fnmatch import fnmatchcase
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
import torch
from hub_server import HubHandler
from safetensors.torch import load_file, save

from vlm_edit import Dictionary, VlmEditError, load_dictionary
from vlm_edit.dictionaries import Encoder, Layout, save_saelens
from vlm_edit.dictionaries.formats.hub import candidates, locate

COMMIT = "c" * 40


@pytest.fixture
def sae(tmp_path):
    dictionary = Dictionary(Encoder(torch.eye(4), torch.zeros(4)), torch.eye(4), torch.zeros(4))
    save_saelens(dictionary, tmp_path / "sae")
    return tmp_path / "sae"


def in_process(code: str, **environment: str) -> str:
    """What a fresh interpreter prints: huggingface_hub reads its settings when it is imported."""
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return run.stdout + run.stderr[-2000:]


LOAD = """
import time
from vlm_edit import VlmEditError, load_dictionary
from huggingface_hub import HfApi, snapshot_download  # not counted: importing them takes a while
for arguments in {}:
    begin = time.monotonic()
    try:
        print("features", load_dictionary(*arguments[:1], **arguments[1]).n_features)
    except VlmEditError as error:
        print("error:", error)
    if time.monotonic() - begin > 10:  # trying again took 24
        print("slow")
"""


def cached(home: Path, sae: Path, *folders: str) -> None:
    """A repository in the cache, as huggingface_hub lays it out."""
    repository = home / "hub" / "models--owner--name"
    snapshot = repository / "snapshots" / COMMIT
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for folder in folders:
        for file in sae.iterdir():
            blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
            blob.parent.mkdir(exist_ok=True)
            blob.write_bytes(file.read_bytes())
            place = snapshot / folder / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(blob)


def test_offline_a_cached_repository_is_read_and_an_uncached_one_named(tmp_path, sae):
    cached(tmp_path / "home", sae, "layers.3")
    calls = [
        ("owner/name", {}),
        ("owner/name", {"file": "layers.3"}),
        ("owner/name", {"file": "layers.4"}),
        ("owner/name", {"revision": COMMIT}),
        ("owner/other", {}),
        ("owner/name", {"revision": "v2"}),
        ("owner/name", {"revision": "../main"}),
    ]
    told = in_process(
        LOAD.format(calls), HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="1"
    ).splitlines()
    assert told[0] == told[1] == told[3] == "features 4"
    assert "has no 'layers.4'; it has 'layers.3'" in told[2]
    assert "the repository is not in the cache of huggingface_hub" in told[4]
    for line, revision in zip(told[5:], ("v2", "../main"), strict=True):
        assert f"revision '{revision}' of the repository owner/name is not in the cache" in line
        assert line.endswith("the cache has main (cccccccccccc)")


@pytest.fixture
def silent():
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("down", ["refused", "silent"])
def test_without_a_network_a_cached_repository_is_read_at_once(tmp_path, sae, silent, down):
    cached(tmp_path / "home", sae, "layers.3")
    calls = [
        ("owner/name", {}),
        ("owner/name", {"revision": COMMIT, "file": "layers.3"}),
        ("owner/name", {"revision": "v2"}),
        ("owner/other", {}),
    ]
    told = in_process(
        LOAD.format(calls),
        HF_HOME=str(tmp_path / "home"),
        HF_ENDPOINT="http://127.0.0.1:9" if down == "refused" else silent,
        HF_HUB_ETAG_TIMEOUT="1",
    )
    lines = [line for line in told.splitlines() if line.startswith(("features", "error", "slow"))]
    assert lines[:2] == ["features 4"] * 2
    assert "cannot be reached" in lines[2] and "cache has main (cccccccccccc)" in lines[2]
    assert "cannot be reached" in lines[3] and "the repository is not in the cache" in lines[3]
    assert len(lines) == 4
    # Of a branch, which may have moved on, and not of a commit.
    assert told.count("taking what its cache has of it, commit cccccccccccc") == 1


def test_while_the_hub_is_out_of_order_a_cached_repository_is_read(tmp_path, sae, hub):
    cached(tmp_path / "home", sae, "layers.3")
    hub.broken = True
    told = in_process(
        LOAD.format([("owner/name", {})]),
        HF_HOME=str(tmp_path / "home"),
        HF_ENDPOINT=f"http://127.0.0.1:{hub.server_port}",
    )
    assert "features 4" in told.splitlines()


class Hub(HubHandler):
    """The three answers of the hub that reading a repository needs."""

    def answer(self, body: bool) -> None:
        path = unquote(self.path.split("?")[0])
        self.server.asked.append(path)
        files = self.server.files
        if self.server.broken:
            self.reply(503, b"", {}, body)
        elif "/owner/name" not in path:
            self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        elif "/resolve/" in path:
            data = files.get(path.split(f"/resolve/{COMMIT}/")[-1].split("/resolve/main/")[-1])
            tag = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(data or b"").hexdigest()}"'}
            self.reply(200 if data is not None else 404, data or b"", tag, body)
        elif "/tree/" in path:
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": name}
                for name, data in files.items()
            ]
            self.reply(200, json.dumps(tree).encode(), {}, body)
        else:
            told = {
                "id": "owner/name",
                "sha": COMMIT,
                "siblings": [{"rfilename": name} for name in files],
            }
            self.reply(200, json.dumps(told).encode(), {}, body)


@pytest.fixture
def hub(sae):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.broken = [], False
    server.files = {
        f"{folder}/{file.name}": file.read_bytes()
        for folder in ("layers.3", "layers.4")
        for file in sae.iterdir()
    }
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_of_a_repository_of_several_only_the_one_named_is_fetched(tmp_path, hub):
    calls = [
        ("owner/name", {}),
        ("owner/name", {"file": "layers.4"}),
        ("owner/nobody", {}),
    ]
    told = in_process(
        LOAD.format(calls),
        HF_HOME=str(tmp_path / "home"),
        HF_ENDPOINT=f"http://127.0.0.1:{hub.server_port}",
    ).splitlines()
    errors = [line for line in told if line.startswith(("error", "features"))]
    assert "several dictionaries: say which with file=, one of 'layers.3', 'layers.4'" in errors[0]
    assert errors[1] == "features 4"
    assert "no such repository on the hub" in errors[2]
    assert not any("layers.3" in path for path in hub.asked)


def parted(sae: Path) -> dict[str, bytes]:
    """A dictionary's files, with its tensors in two parts and an index."""
    tensors = load_file(sae / "sae_weights.safetensors")
    places, files = {}, {"cfg.json": (sae / "cfg.json").read_bytes()}
    for i, names in enumerate((("W_enc", "b_enc"), ("W_dec", "b_dec"))):
        part = f"sae_weights-0000{i + 1}-of-00002.safetensors"
        files[part] = save({name: tensors[name] for name in names})
        places |= dict.fromkeys(names, part)
    index = json.dumps({"metadata": {}, "weight_map": places})
    return files | {"sae_weights.safetensors.index.json": index.encode()}


@pytest.mark.parametrize("folder", ["", "layers.3/"])
def test_parts_with_an_index_are_one_dictionary_and_all_are_fetched(tmp_path, hub, sae, folder):
    hub.files = {f"{folder}{name}": data for name, data in parted(sae).items()}
    layout = Layout("W_enc", "W_dec", "dm", "md", "b_enc", "b_dec", True, "relu")
    index = f"{folder}sae_weights.safetensors.index.json"
    by_name = {"file": index, "format": "state_dict", "layout": layout}
    home, other = str(tmp_path / "home"), str(tmp_path / "other")
    here = f"http://127.0.0.1:{hub.server_port}"
    online = "from vlm_edit.dictionaries import Layout" + LOAD.format([("owner/name", {})])
    named = "from vlm_edit.dictionaries import Layout" + LOAD.format([("owner/name", by_name)])
    assert "features 4" in in_process(online, HF_HOME=home, HF_ENDPOINT=here).splitlines()
    assert in_process(online, HF_HOME=home, HF_HUB_OFFLINE="1").splitlines() == ["features 4"]
    hub.files |= {f"{folder}more-00001-of-00002.safetensors": b"", f"{folder}sae.safetensors": b""}
    assert "features 4" in in_process(named, HF_HOME=other, HF_ENDPOINT=here).splitlines()
    assert not any("more-" in path or "/sae.safetensors" in path for path in hub.asked)


def test_a_path_wins_over_a_repository(tmp_path, sae, monkeypatch):
    (tmp_path / "owner").mkdir()
    sae.rename(tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    assert load_dictionary("owner/name").n_features == 4
    with pytest.raises(VlmEditError, match="is a path: revision='main' goes with a repository"):
        load_dictionary("owner/name", revision="main")


def test_a_folder_of_several_dictionaries_names_them(tmp_path, sae):
    (tmp_path / "all").mkdir()
    sae.rename(tmp_path / "all" / "layers.3")
    assert load_dictionary(tmp_path / "all", file="layers.3").n_features == 4
    with pytest.raises(VlmEditError, match=r"say which with file=, such as 'layers\.3'"):
        load_dictionary(tmp_path / "all")
    with pytest.raises(VlmEditError, match=r"'layers\.4' is not in .*, which has 'layers\.3'"):
        load_dictionary(tmp_path / "all", file="layers.4")


@pytest.mark.parametrize("path", ["/no/where", "./a/b", "one", "a/b/c", "~/x", "a b/c"])
def test_what_cannot_be_a_repository_is_a_path_that_does_not_exist(path):
    with pytest.raises(VlmEditError, match="the path does not exist"):
        locate(path, None, None)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository in the hub's place, of empty files: what of it is asked for is kept."""
    asked = {}

    def snapshot_download(name, revision, allow_patterns):  # noqa: ARG001
        asked["fetched"] = sorted(
            file for file in asked["files"] if any(fnmatchcase(file, p) for p in allow_patterns)
        )
        return tmp_path

    def model_info(name, revision, timeout):  # noqa: ARG001
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=f) for f in asked["files"]])

    api = SimpleNamespace(model_info=model_info)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return asked


SAE = ["cfg.json", "sae.safetensors"]
RUN = ["run/config.json", "run/checkpoints/ae_5.pt", "run/checkpoints/ae_9.pt"]
INDEX = ["m.safetensors.index.json", "m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"]
PAIR = [f"{stream}/{name}" for stream in ("image", "text") for name in SAE]


@pytest.mark.parametrize(
    ("files", "file", "place", "fetched"),
    [
        (SAE, None, ".", SAE),
        ([*SAE, "more/notes.json", "README.md"], None, ".", [*SAE, "README.md"]),
        (
            ["a/x.safetensors", "b/x.safetensors", "cfg.json"],
            "a",
            "a",
            ["a/x.safetensors", "cfg.json"],
        ),
        (["a/x.pt", "a/b/y.pt"], "a", "a", ["a/x.pt", "a/b/y.pt"]),
        (["a/x.pt", "ab/y.pt"], "a", "a", ["a/x.pt"]),
        (
            [*RUN, "other/config.json"],
            "run/checkpoints/ae_5.pt",
            "run/checkpoints/ae_5.pt",
            RUN[:2],
        ),
        (
            [*RUN, "other/config.json"],
            "./run//checkpoints/ae_5.pt",
            "run/checkpoints/ae_5.pt",
            RUN[:2],
        ),
        (["x[1].pt", "x1.pt"], "x[1].pt", "x[1].pt", ["x[1].pt"]),
        (INDEX, None, ".", INDEX),
        ([*INDEX, "n-00001-of-00002.safetensors"], INDEX[0], INDEX[0], INDEX),
        ([*INDEX, "m-notes.txt", "a/m-1.safetensors"], INDEX[0], INDEX[0], INDEX),
        ([*PAIR, "notes/x.txt"], None, ".", PAIR),
        ([*PAIR, "image/deep/x.txt"], None, ".", PAIR),
    ],
)
def test_of_a_repository_what_is_meant_is_fetched_and_no_more(
    tmp_path, repository, files, file, place, fetched
):
    repository["files"] = files
    assert locate("owner/name", file, None) == tmp_path / place
    assert repository["fetched"] == sorted(fetched)


@pytest.mark.parametrize(
    ("files", "file", "message"),
    [
        (["README.md"], None, "has no weights"),
        (["a.pt", "b.pt"], None, "several dictionaries: .* one of 'a.pt', 'b.pt'"),
        (["a/x.safetensors", "b/x.safetensors"], None, "with file=, one of 'a', 'b'"),
        (["a/x.safetensors", "a/y.safetensors", "b/x.pt"], None, "one of 'a', 'b'"),
        (["ab/x.pt"], "a", "has no 'a'; it has 'ab'"),
        ([f"{i:02}.pt" for i in range(12)], None, "'09.pt' and 2 more"),
    ],
)
def test_of_a_repository_that_has_several_or_none_is_told(repository, files, file, message):
    repository["files"] = files
    with pytest.raises(VlmEditError, match=message):
        locate("owner/name", file, None)


def test_folders_of_a_path_are_listed_without_the_path_itself(tmp_path):
    for name in ("x.pt", "a/y.safetensors", "a/z.txt", "b/c/w.npz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert candidates(tmp_path) == ["a", "b/c"]


def test_a_repository_with_a_file_of_each_layer_asks_which():
    from vlm_edit.dictionaries.formats.hub import _places

    layers = [f"layer_{i}.safetensors" for i in range(3)]
    assert _places([*layers, "config.yaml"]) == layers
    assert _places(["W_enc_0.safetensors", "W_dec_0.safetensors"]) == ["."]
    assert _places(["a/params_layer_0.safetensors", "a/params_layer_1.safetensors"]) == ["a"]
