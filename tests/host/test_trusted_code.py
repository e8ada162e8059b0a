"""A stranger's code runs where the user says so and nowhere else, by every way of loading."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vlm_edit import Host, VlmEditError
from vlm_edit.cli import main
from vlm_edit.ground.errors import BadArgument

COMMIT = "d" * 40
CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel

with open({mark!r}, "a") as file:
    file.write(__name__ + "\\n")


class ThingConfig(PretrainedConfig):
    model_type = "thing"

    def __init__(self, width=8, **more):
        self.width = width
        super().__init__(**more)


class Thing(PreTrainedModel):
    config_class = ThingConfig
    _no_split_modules = ["Linear"]

    def __init__(self, config):
        super().__init__(config)
        self.layer = torch.nn.Linear(config.width, config.width)
        self.head = torch.nn.Linear(config.width, 2)
        self.post_init()

    def forward(self, x):
        return self.head(self.layer(x))


class Other(Thing):
    pass


class ThingProcessor:
    @classmethod
    def from_pretrained(cls, *_, **__):
        return cls()

    @classmethod
    def register_for_auto_class(cls, *_):
        pass
"""


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


def thing(folder: Path, mark: Path, *keys: str, **config: Any) -> Path:
    """A model of a kind that transformers does not have, whose code marks that it ran."""
    folder.mkdir()
    names = {"AutoConfig": "ThingConfig", **dict.fromkeys(keys or ("AutoModel",), "Thing")}
    mapped = {key: f"stranger.{name}" for key, name in names.items()}
    told = {"model_type": "thing", "architectures": ["Thing"], "auto_map": mapped, **config}
    (folder / "config.json").write_text(json.dumps(told), "utf-8")
    processor = {"auto_map": {"AutoProcessor": "stranger.ThingProcessor"}}
    (folder / "processor_config.json").write_text(json.dumps(processor), "utf-8")
    (folder / "stranger.py").write_text(CODE.format(mark=str(mark)), "utf-8")
    torch.manual_seed(0)
    tensors = {"layer.weight": torch.randn(8, 8), "layer.bias": torch.zeros(8)}
    tensors |= {"head.weight": torch.randn(2, 8), "head.bias": torch.zeros(2)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


WAYS: dict[str, dict[str, Any]] = {
    "plain": {"device": "cpu"},
    "half": {"device": "cpu", "dtype": "bfloat16"},
    "spread": {"device_map": "auto"},
    "quantized": {"device": "cpu", "quantize": "8bit"},
}


@pytest.mark.parametrize("way", WAYS)
def test_code_of_a_folder_runs_only_where_it_is_trusted(tmp_path: Path, way: str) -> None:
    mark = tmp_path / "ran"
    folder = thing(tmp_path / "model", mark)
    with pytest.raises(VlmEditError, match="never runs unless you ask for it: .*trust_remote_code"):
        Host.load(folder, **WAYS[way])
    assert not mark.exists()
    host = Host.load(folder, **WAYS[way], trust_remote_code=True)
    assert mark.exists() and host.kind.__name__ == "Thing"
    assert type(host.processor).__name__ == "ThingProcessor"
    weight = host.root.layer.weight
    if way == "half":
        assert weight.dtype == torch.bfloat16
    elif way == "quantized":
        assert type(host.root.layer).__name__ == "Linear8bitLt"
    else:
        torch.manual_seed(0)
        assert torch.equal(weight, torch.randn(8, 8))


@pytest.mark.parametrize(
    "keys",
    [
        ("AutoModelForCausalLM",),
        ("AutoModelForVision2Seq",),
        ("AutoModelForSeq2SeqLM", "AutoModel"),
    ],
    ids=" ".join,
)
def test_by_whatever_automatic_class_its_own_code_goes(tmp_path: Path, keys: tuple[str]) -> None:
    """AutoModelForVision2Seq is one that transformers no longer has."""
    folder = thing(tmp_path / "model", tmp_path / "ran", *keys)
    host = Host.load(folder, "cpu", trust_remote_code=True)
    assert host.kind.__name__ == "Thing" and host.root(torch.ones(1, 8)).shape == (1, 2)


def test_of_several_classes_the_architecture_that_is_named_is_taken(tmp_path: Path) -> None:
    folder = thing(tmp_path / "model", tmp_path / "ran", architectures=["Other"])
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["auto_map"] |= {"AutoModelForCausalLM": "stranger.Other"}
    config["auto_map"] |= {"AutoModelForVision2Seq": "stranger.Thing"}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    assert Host.load(folder, "cpu", trust_remote_code=True).kind.__name__ == "Other"


def test_a_known_model_type_with_code_of_its_own_is_refused_and_says_how(tmp_path: Path) -> None:
    folder = thing(tmp_path / "model", tmp_path / "ran", model_type="clip")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    del config["auto_map"]["AutoConfig"]
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(VlmEditError, match="architecture 'Thing', .*custom code.*trust_remote_cod"):
        Host.load(folder, "cpu")
    assert not (tmp_path / "ran").exists()


def test_without_code_for_what_it_names_trust_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "clip", "architectures": ["Mine"]}')
    with pytest.raises(VlmEditError, match="names the architecture 'Mine', which is no model of"):
        Host.load(folder, "cpu", trust_remote_code=True)


@pytest.mark.parametrize("said", ["False", "no", 1, 0, None])
def test_trust_is_a_yes_or_a_no_and_no_word_that_may_mean_either(said: Any, tmp_path: Path) -> None:
    folder = thing(tmp_path / "model", tmp_path / "ran")
    with pytest.raises(BadArgument, match="trust_remote_code is .*give True or False"):
        Host.load(folder, "cpu", trust_remote_code=said)
    assert not (tmp_path / "ran").exists()


ADAPTER = """
from vlm_edit import Adapter

ADAPTER = Adapter.of({"layer": ("layer", "image", 8)})
"""


def test_the_command_runs_it_by_a_flag_and_advises_that_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "ran"
    folder = thing(tmp_path / "model", mark)
    (tmp_path / "things_adapter.py").write_text(ADAPTER, "utf-8")
    monkeypatch.chdir(tmp_path)
    words = ["sites", str(folder), "--adapter", "things_adapter:ADAPTER", "--device", "cpu"]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert "with --trust-remote-code" in told and "trust_remote_code" not in told
    assert not mark.exists()
    assert main([*words, "--trust-remote-code"]) == 0
    told = capsys.readouterr()
    assert mark.exists() and "layer" in told.out
    assert told.err.splitlines()[-1] == "vlm-edit: Thing on cpu in float32"


def cached(home: Path, folder: Path) -> None:
    """A repository in the cache, as huggingface_hub lays it out."""
    repository = home / "hub" / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for file in filter(Path.is_file, folder.rglob("*")):
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(file.read_bytes())
        place = repository / "snapshots" / COMMIT / file.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(blob)


LOAD = """
import sys
from pathlib import Path
from vlm_edit import Host, VlmEditError
mark = Path(sys.argv[1])
for options in ({}, {"quantize": "8bit"}, {"device_map": "balanced"}, {"trust_remote_code": True}):
    options |= {} if "device_map" in options else {"device": "cpu"}
    try:
        kind = Host.load("owner/name", **options).kind.__name__
    except VlmEditError as error:
        kind = "refused" if "trust_remote_code=True" in str(error) else str(error)
    print("did", kind, mark.exists())
"""


def loaded_of_the_cache(home: Path, mark: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(mark)],
        env={"PATH": "/usr/bin:/bin", "HF_HOME": str(home), "HF_HUB_OFFLINE": "1",
             "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
        input="y\n" * 20, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("did")]
    assert len(lines) == 4, done.stderr
    return lines


def test_code_of_a_repository_runs_only_where_it_is_trusted(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    cached(tmp_path / "home", thing(tmp_path / "model", mark))
    assert loaded_of_the_cache(tmp_path / "home", mark) == [
        *["did refused False"] * 3,
        "did Thing True",
    ]


# Pipelines

PIPELINE = """
from diffusers import DiffusionPipeline

with open({mark!r}, "a") as file:
    file.write(__name__)


class Mine(DiffusionPipeline):
    def __init__(self, scheduler):
        super().__init__()
        self.register_modules(scheduler=scheduler)
        self.blank = None
"""


def pipeline(folder: Path, mark: Path) -> Path:
    """A pipeline of a class of its own, which lies beside its index."""
    diffusers = pytest.importorskip("diffusers")
    diffusers.DDIMScheduler().save_pretrained(folder / "scheduler")
    index = {"_class_name": ["mine", "Mine"], "_diffusers_version": diffusers.__version__}
    index |= {"scheduler": ["diffusers", "DDIMScheduler"]}
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    (folder / "mine.py").write_text(PIPELINE.format(mark=str(mark)), "utf-8")
    return folder


def test_code_of_a_pipeline_runs_only_where_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark, folder = tmp_path / "ran", pipeline(tmp_path / "pipe", tmp_path / "ran")
    from diffusers.utils import dynamic_modules_utils

    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    for way in (*list(WAYS.values())[:2], {"device_map": "balanced"}, WAYS["quantized"]):
        with pytest.raises(VlmEditError, match="trust_remote_code=True"):
            Host.load(folder, **way)
    assert not mark.exists()
    host = Host.load(folder, "cpu", trust_remote_code=True)
    assert mark.exists() and host.kind.__name__ == "Mine"


@pytest.mark.slow
def test_code_of_a_cached_pipeline_runs_only_where_it_is_trusted(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    cached(tmp_path / "home", pipeline(tmp_path / "pipe", mark))
    assert loaded_of_the_cache(tmp_path / "home", mark) == [
        *["did refused False"] * 3,
        "did Mine True",
    ]
