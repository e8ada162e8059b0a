"""Patches of repositories: a cache as huggingface_hub lays it out, a hub of our own, and cards."""

import hashlib
import json
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import huggingface_hub
import pytest
import yaml
from conftest import random_dictionary
from hub_server import HubHandler
from huggingface_hub.errors import HfHubHTTPError

from vlm_edit import Ablate, Patch, Scale, VlmEditError, load_patch

COMMIT = "c" * 40
LOAD = """
from vlm_edit import VlmEditError, load_patch
for arguments in {}:
    try:
        print("edits", load_patch(arguments[0], **arguments[1]).bindings[0].splice.slice.features)
    except VlmEditError as error:
        print("error:", error)
"""


@pytest.fixture
def made(clip, tmp_path):
    """Bytes of patches of one feature."""

    def make(feature):
        patch = Patch("joint", random_dictionary(12), Ablate([feature]))
        patch.save(tmp_path / "made", clip)
        return (tmp_path / "made").read_bytes()

    return make


def in_process(calls: list, **environment: str) -> list[str]:
    """What a fresh interpreter prints: huggingface_hub reads its settings when it is imported."""
    run = subprocess.run(
        [sys.executable, "-c", LOAD.format(calls)],
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in run.stderr, run.stderr[-2000:]
    return [line for line in run.stdout.splitlines() if line.startswith(("edits", "error"))]


def cached(home: Path, files: dict[str, bytes]) -> None:
    """A repository in the cache, as huggingface_hub lays it out."""
    repository = home / "hub" / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for name, data in files.items():
        blob = repository / "blobs" / hashlib.sha256(data).hexdigest()
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(data)
        place = repository / "snapshots" / COMMIT / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(blob)


def test_offline_a_cached_patch_is_read_and_an_uncached_one_named(tmp_path, made):
    cached(tmp_path / "home", {"a/p.safetensors": made(3), "b/p.safetensors": made(5)})
    calls = [
        ("owner/name", {"file": "a/p.safetensors"}),
        ("owner/name", {"file": "b"}),
        ("owner/name", {"file": "b", "revision": COMMIT}),
        ("owner/name", {}),
        ("owner/name", {"file": "c"}),
        ("owner/other", {}),
    ]
    told = in_process(calls, HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="1")
    assert told[:3] == ["edits (3,)", "edits (5,)", "edits (5,)"]
    assert "several patches: say which with file=: 'a/p.safetensors', 'b/p.safeten" in told[3]
    assert "there is no 'c'; it has 'a/p.safetensors'" in told[4]
    assert "error: no patch at 'owner/other'" in told[5] and "not in the cache" in told[5]


def test_without_a_network_a_cached_patch_is_read(tmp_path, made):
    cached(tmp_path / "home", {"p.safetensors": made(3)})
    calls = [
        ("owner/name", {}),
        ("owner/name", {"revision": COMMIT}),
        ("owner/name", {"revision": "v2"}),
    ]
    told = in_process(calls, HF_HOME=str(tmp_path / "home"), HF_ENDPOINT="http://127.0.0.1:9")
    assert told[:2] == ["edits (3,)"] * 2
    assert "revision 'v2' of the repository owner/name is not in the cache" in told[2]


class Hub(HubHandler):
    """The answers of the hub that reading a file needs."""

    def answer(self, body: bool) -> None:
        path = unquote(self.path.split("?")[0])
        self.server.asked.append(path)
        files = self.server.files
        if "/owner/name" not in path:
            self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        elif "/resolve/" in path:
            data = files.get(path.split("/resolve/")[-1].split("/", 1)[-1])
            tag = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(data or b"").hexdigest()}"'}
            self.reply(200 if data is not None else 404, data or b"", tag, body)
        else:
            tree = [{"type": "file", "path": f, "size": len(d), "oid": f} for f, d in files.items()]
            siblings = {"siblings": [{"rfilename": name} for name in files]}
            told = tree if "/tree/" in path else {"id": "owner/name", "sha": COMMIT, **siblings}
            self.reply(200, json.dumps(told).encode(), {}, body)


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.files = [], {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_of_a_repository_only_the_patch_is_fetched_and_then_read_offline(tmp_path, hub, made):
    hub.files = {"patch.safetensors": made(3), "README.md": b"#", "big/model.bin": b"0" * 100}
    home, here = str(tmp_path / "home"), f"http://127.0.0.1:{hub.server_port}"
    calls = [("owner/name", {}), ("owner/nobody", {})]
    told = in_process(calls, HF_HOME=home, HF_ENDPOINT=here)
    assert told[0] == "edits (3,)"
    assert "no patch at 'owner/nobody'" in told[1] and "no such repository on the hub" in told[1]
    assert not any("model.bin" in path or "README" in path for path in hub.asked)
    assert in_process(calls[:1], HF_HOME=home, HF_HUB_OFFLINE="1") == ["edits (3,)"]


def test_a_repository_without_a_patch_says_so(tmp_path, hub):
    hub.files = {"README.md": b"#"}
    (told,) = in_process(
        [("owner/name", {})],
        HF_HOME=str(tmp_path),
        HF_ENDPOINT=f"http://127.0.0.1:{hub.server_port}",
    )
    assert "there is no .safetensors file" in told


def test_a_folder_with_one_patch_is_read_and_of_several_the_one_named(tmp_path, made):
    (tmp_path / "hers" / "in").mkdir(parents=True)
    (tmp_path / "hers" / "in" / "p.safetensors").write_bytes(made(4))
    assert load_patch(tmp_path / "hers").bindings[0].splice.slice.features == (4,)
    (tmp_path / "hers" / "q.safetensors").write_bytes(made(6))
    with pytest.raises(VlmEditError, match="several patches: say which with file=: 'in/p.safe"):
        load_patch(tmp_path / "hers")
    found = load_patch(tmp_path / "hers", file="q.safetensors")
    assert found.bindings[0].splice.slice.features == (6,)
    with pytest.raises(VlmEditError, match="there is no 'r'; it has"):
        load_patch(tmp_path / "hers", file="r")


def test_arguments_of_a_repository_are_refused_with_a_path(tmp_path, made):
    file = tmp_path / "p.safetensors"
    file.write_bytes(made(3))
    with pytest.raises(VlmEditError, match="is a path: revision='main' goes with a repository"):
        load_patch(file, revision="main")
    with pytest.raises(VlmEditError, match="is a path: file='a' goes with a repository"):
        load_patch(file, file="a")
    with pytest.raises(VlmEditError, match="is a path: revision"):
        load_patch(tmp_path, revision="main")


def test_a_missing_file_is_not_looked_for_on_the_hub():
    with pytest.raises(VlmEditError, match="no patch at .*: the file does not exist"):
        load_patch("runs/p.safetensors")


class Uploads:
    """What HfApi was asked to do, in place of doing it."""

    def __init__(self, monkeypatch, error=None):
        self.made, self.sent = [], []
        uploads = self

        class Api:
            def create_repo(self, name, *, exist_ok, private):
                uploads.made.append((name, exist_ok, private))

            def upload_folder(self, *, repo_id, folder_path, commit_message, revision):
                if error is not None:
                    raise error
                found = sorted(p for p in Path(folder_path).rglob("*") if p.is_file())
                files = {p.relative_to(folder_path).as_posix(): p.read_bytes() for p in found}
                uploads.sent.append((repo_id, files, commit_message, revision))
                return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

        monkeypatch.setattr(huggingface_hub, "HfApi", Api)


def patch_of(clip):
    clip.config._name_or_path = "openai/clip"
    info = {"class": "vision-dominant", "weird": "| <b>`x`\nnext\x1b[31m"}
    rules = [Ablate([3, 7]), Scale([9], 2.5, strength=0.5)]
    return Patch("joint", random_dictionary(12), rules, "image", info)


def test_a_push_is_one_commit_of_the_file_and_its_card(clip, tmp_path, monkeypatch):
    uploads = Uploads(monkeypatch)
    found = patch_of(clip).push_to_hub(
        "owner/no-vision", clip, effect={"R@1": ".66 -> .58"}, license="apache-2.0", private=True
    )
    assert found == "https://hub/owner/no-vision/commit/1"
    assert uploads.made == [("owner/no-vision", True, True)]
    ((name, files, message, revision),) = uploads.sent
    assert (name, message, revision) == ("owner/no-vision", "Add patch.safetensors", None)
    assert sorted(files) == ["README.md", "patch.safetensors"]
    (tmp_path / "p").write_bytes(files["patch.safetensors"])
    back = load_patch(tmp_path / "p")
    assert back.bindings[0].splice.rules == patch_of(clip).bindings[0].splice.rules
    back.attach(clip).remove()
    card = files["README.md"].decode()
    assert 'load_patch("owner/no-vision")' in card and "- R@1: .66 -> .58" in card


def test_patches_in_folders_of_their_own_keep_a_card_each(clip, monkeypatch):
    uploads = Uploads(monkeypatch)
    patch_of(clip).push_to_hub("owner/many", clip, file="a/no-vision.safetensors", revision="dev")
    ((_, files, _, revision),) = uploads.sent
    assert sorted(files) == ["a/README.md", "a/no-vision.safetensors"] and revision == "dev"
    card = files["a/README.md"].decode()
    assert 'load_patch("owner/many", file="a/no-vision.safetensors")' in card


def test_the_card_says_what_on_which_host_how_chosen_and_at_what_cost(clip, tmp_path):
    patch_of(clip).save(tmp_path / "p", clip)
    card = load_patch(tmp_path / "p").card(cost={"ms a token": 0.02}, license="mit")
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "vlm-edit",
        "tags": ["vlm-edit", "model-editing", "sparse-autoencoder"],
        "license": "mit",
        "base_model": "openai/clip",
        "base_model_relation": "adapter",
    }
    assert "| joint | image tokens | ablate | 3, 7 | 2 |" in body
    assert "| joint | image tokens | scale, factor 2.5, strength 0.5 | 9 | 1 |" in body
    assert "Host: openai/clip, CLIPModel." in body
    assert f"digest {random_dictionary(12).digest()}" in body
    assert "- class: vision-dominant" in body
    assert "No effect is stated" in body and "- ms a token: 0.02" in body
    assert "mit. The file holds weights of the dictionary" in body
    assert "Written with vlm_edit" in body


def test_what_a_maker_says_stays_text_of_one_line(clip):
    card = patch_of(clip).card()
    (line,) = [line for line in card.splitlines() if line.startswith("- weird")]
    assert line == r"- weird: \| \<b>\`x\` next \[31m"
    assert "Not stated." in card and "license:" not in card


def test_metadata_is_yaml_whatever_it_is_made_of(clip):
    told = 'x"\n---\nlicense: mit'
    front = patch_of(clip).card(license=told).split("---\n", 2)[1]
    assert (
        yaml.safe_load(patch_of(clip).card(license="é: [").split("---\n")[1])["license"] == "é: ["
    )
    assert yaml.safe_load(front)["license"] == told


@pytest.mark.parametrize("name", ["plain", "a/b/c", "../x", "/abs", "owner/"])
def test_a_name_that_is_no_repository_is_refused_before_any_work(clip, monkeypatch, name):
    uploads = Uploads(monkeypatch)
    with pytest.raises(VlmEditError, match="write it as 'owner/name'"):
        patch_of(clip).push_to_hub(name, clip)
    assert not uploads.made


@pytest.mark.parametrize(
    "file", ["p.bin", "/p.safetensors", "../p.safetensors", "a\\p.safetensors"]
)
def test_a_place_outside_the_repository_is_refused(clip, monkeypatch, file):
    uploads = Uploads(monkeypatch)
    with pytest.raises(VlmEditError, match="it is a place in the repository"):
        patch_of(clip).push_to_hub("owner/name", clip, file=file)
    assert not uploads.made


def test_a_patch_that_does_not_fit_the_host_is_not_pushed(clip, monkeypatch):
    uploads = Uploads(monkeypatch)
    with pytest.raises(VlmEditError, match="13 wide"):
        Patch("joint", random_dictionary(13), Ablate([1])).push_to_hub("owner/name", clip)
    with pytest.raises(VlmEditError, match="none is known for"):
        patch_of(clip).push_to_hub("owner/name")
    assert not uploads.made and not uploads.sent


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("no token"), "cannot be written: no token"),
        (
            HfHubHTTPError("403 Forbidden", response=SimpleNamespace(headers={}, request=None)),
            "403",
        ),
    ],
)
def test_a_hub_that_refuses_is_our_error(clip, monkeypatch, error, message):
    Uploads(monkeypatch, error)
    with pytest.raises(VlmEditError, match=message):
        patch_of(clip).push_to_hub("owner/name", clip)
