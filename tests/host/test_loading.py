"""Hosts by name: folders, the hub's cache, shelves of other distributions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_clip

from vlm_edit import Host, zoo
from vlm_edit.ground.errors import BadArgument, CannotKnow, UnknownName, VlmEditError
from vlm_edit.host import loading

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP in half precision with the zoo's processor."""
    folder = tmp_path_factory.mktemp("host")
    make_clip().to(torch.bfloat16).save_pretrained(folder)
    zoo.load_host()[1].save_pretrained(folder)
    return folder


def test_a_folder_is_loaded_as_transformers_loads_it(folder: Path) -> None:
    host = Host.load(folder, device="cpu")
    assert type(host.processor).__name__ == "CLIPProcessor" and not host.root.training
    assert host.root.dtype == torch.bfloat16 and host.device == torch.device("cpu")
    there = type(host.root).from_pretrained(folder).state_dict()
    assert all(torch.equal(there[name], value) for name, value in host.root.state_dict().items())


@pytest.mark.parametrize("dtype", ["float32", torch.float32])
def test_the_dtype_is_the_checkpoints_unless_one_is_asked_for(
    folder: Path, dtype: str | torch.dtype
) -> None:
    assert Host.load(folder, "cpu", dtype).root.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["float33", "int8", torch.int8, "nn", 3, None])
def test_what_is_no_floating_dtype_is_refused(dtype: object) -> None:
    with pytest.raises(BadArgument, match="take 'auto' for the checkpoint's own, or a floating"):
        Host.load("zoo:emoji-clip", dtype=dtype)  # type: ignore[arg-type]


def test_a_device_that_torch_does_not_know_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(BadArgument, match="device 'gpu' is none that torch knows"):
        Host.load("no-such-model", device="gpu")


def test_the_best_device_there_is_is_taken() -> None:
    best = "cuda" if torch.cuda.is_available() else "cpu"
    assert Host.load("zoo:emoji-clip").device.type == best


def test_what_is_said_of_a_host_is_passed_on(folder: Path) -> None:
    given = zoo.load_host()[0]
    adapter = Host.of(given).adapter
    host = Host.load(folder, adapter=adapter, prompt=lambda *_: {})
    assert host.adapter is adapter and host.prompt is not None


@pytest.mark.parametrize("name", ["no-such-model", "a/b/c", "./owner/name", "", "C:"])
def test_what_is_no_folder_and_no_name_on_the_hub_is_refused(name: str) -> None:
    with pytest.raises(BadArgument, match=r"no model at .* owner/name on the hub, or zoo:NAME"):
        Host.load(name)


@pytest.mark.parametrize("name", ["zoo:emoji-clip", "."])
def test_a_revision_of_what_is_no_repository_is_refused(name: str) -> None:
    with pytest.raises(BadArgument, match="no repository of the hub: revision='main' goes with"):
        Host.load(name, revision="main")


def test_a_folder_named_like_a_repository_is_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadArgument, match="it must be a folder with a config.json"):
        Host.load("owner/name")


def test_a_model_without_a_processor_is_loaded_and_says_so_when_one_is_needed(
    tmp_path: Path,
) -> None:
    make_clip().save_pretrained(tmp_path)
    host = Host.load(tmp_path)
    assert host.processor is None and "joint" in host.sites
    with pytest.raises(CannotKnow, match=r"needs the host's processor, and .*cannot load it"):
        host.inputs([], [])


def test_an_architecture_that_transformers_lacks_is_refused(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["Mine"]}), "utf-8")
    with pytest.raises(VlmEditError, match="names the architecture 'Mine', which is no model of"):
        Host.load(tmp_path)


def test_the_zoos_shelf_is_an_entry_point() -> None:
    host = Host.load("zoo:emoji-llava", device="cpu")
    assert "language.3" in host.sites and host.processor is not None
    assert loading.SHELVES.find("zoo") is zoo.load
    with pytest.raises(UnknownName, match="the zoo has no model 'zoo:lion': it has zoo:emoji-clip"):
        Host.load("zoo:lion")


def test_a_pipeline_of_a_shelf_is_a_host() -> None:
    pytest.importorskip("diffusers")
    host = Host.load("zoo:emoji-unclip", device="cpu")
    assert host.is_pipeline and host.processor is None


@pytest.mark.slow
def test_a_cached_repository_is_loaded_without_a_network(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "home" / "hub" / "models--owner--name"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "snapshots" / COMMIT).symlink_to(folder)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    script = (
        "import sys; from vlm_edit import Host\n"
        "host = Host.load('owner/name', device='cpu', revision=sys.argv[1] or None)\n"
        "print(host, host.hub_name)\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    for revision in ("", COMMIT, "main"):
        done = subprocess.run(
            [sys.executable, "-c", script, revision],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == "Host(CLIPModel with 7 sites and a CLIPProcessor) owner/name"
    done = subprocess.run(
        [sys.executable, "-c", script.replace("owner/name", "owner/other"), ""],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "no model at 'owner/other': there is no such path, and the repository" in done.stderr
