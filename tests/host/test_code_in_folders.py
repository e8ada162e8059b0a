"""A folder is data: no code that lies in one, or that one names, is run by loading it."""

import ast
import inspect
import io
import json
import sys
import tomllib
from pathlib import Path

import pytest

from vlm_edit import Host, VlmEditError, zoo
from vlm_edit.cli import main
from vlm_edit.cli.host import load_host, load_model
from vlm_edit.cli.loading import Loading
from vlm_edit.cli.pipeline import load_pipeline
from vlm_edit.host import DIFFUSERS
from vlm_edit.host import load_pipeline as load_any_pipeline
from vlm_edit.host.loading import load
from vlm_edit.measuring import image_encoder, text_encoder

ROOT = Path(__file__).resolve().parents[2]
MODULE = "stranger"
PARTS = (
    *("unet", "vae", "text_encoder", "tokenizer", "scheduler"),
    *("safety_checker", "feature_extractor", "image_encoder"),
)


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """Where code that ran leaves its mark, with somebody at the keyboard who says yes."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    return tmp_path / "ran"


def stranger(folder: Path, ran: Path, files: dict[str, object]) -> Path:
    """A folder of these files, and beside each a module that leaves a mark when imported."""
    code = f"open({str(ran)!r}, 'w').close()\nclass Thing:\n    pass\n"
    for name, told in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(told), "utf-8")
        (path.parent / f"{MODULE}.py").write_text(code, "utf-8")
    return folder


def own(*classes: str) -> dict[str, object]:
    return {"auto_map": {name: f"{MODULE}.Thing" for name in classes}}


OWN_MODEL = {
    "model_type": MODULE,
    "architectures": ["Thing"],
    **own("AutoConfig", "AutoModel", "AutoProcessor"),
}


def expect_one_line(words, capsys):
    assert main([str(word) for word in words]) == 2
    told = capsys.readouterr()
    lines = [line for line in told.err.splitlines() if not line.startswith("[transformers]")]
    assert len(lines) == 1 and lines[0].startswith("vlm-edit: "), told.err
    assert "[y/N]" not in told.out
    return lines[0]


def test_a_model_of_its_own_code_is_refused_in_one_line_whoever_says_yes(tmp_path, ran, capsys):
    folder = stranger(tmp_path / "model", ran, {"config.json": OWN_MODEL})
    told = expect_one_line(["sites", folder], capsys)
    assert "code" in told and "never runs" in told
    assert str(folder) in told
    expect_one_line(["measure", folder, "zoo:pairs", "--out", tmp_path / "run",
                     "--dictionary", "zoo:joint"], capsys)  # fmt: skip
    assert not ran.exists()


def test_a_known_model_is_loaded_by_the_code_that_is_known(tmp_path, ran):
    host, processor = zoo.load_host()
    folder = tmp_path / "model"
    host.save_pretrained(folder)
    processor.save_pretrained(folder)
    told = json.loads((folder / "config.json").read_text("utf-8"))
    stranger(folder, ran, {"config.json": told | own("AutoConfig", "AutoModel")})
    assert load_model(str(folder)).kind is type(host)
    assert not ran.exists()


def test_a_processor_of_its_own_code_is_refused(tmp_path, ran):
    folder = tmp_path / "model"
    zoo.load_host()[0].save_pretrained(folder)
    kind = {"processor_class": "Thing", "image_processor_type": "Thing", "tokenizer_class": "Thing"}
    mapped = own("AutoProcessor", "AutoImageProcessor") | kind
    tokenizer = {"auto_map": {"AutoTokenizer": [f"{MODULE}.Thing", None]}} | kind
    stranger(folder, ran, {
        "processor_config.json": mapped,
        "preprocessor_config.json": mapped,
        "tokenizer_config.json": tokenizer,
    })  # fmt: skip
    with pytest.raises(VlmEditError, match="code"):
        load_host(str(folder))
    assert not ran.exists()


@pytest.mark.parametrize("make", [text_encoder, image_encoder])
def test_an_encoder_of_its_own_code_is_refused(tmp_path, ran, make):
    mapped = own("AutoTokenizer", "AutoImageProcessor", "AutoProcessor", "AutoModel")
    tokenizer = {"auto_map": {"AutoTokenizer": [f"{MODULE}.Thing", None]}}
    folder = stranger(tmp_path / "encoder", ran, {
        "config.json": OWN_MODEL,
        "preprocessor_config.json": mapped | {"image_processor_type": "Thing"},
        "tokenizer_config.json": tokenizer | {"tokenizer_class": "Thing"},
    })  # fmt: skip
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(VlmEditError, match="code"):
        make(folder)
    assert not ran.exists()


@pytest.mark.parametrize(
    "architectures",
    [["pipeline"], ["logging"], ["__class__"], [5], [["CLIPModel"]], {"a": 1}, "CLIPModel", []]
    + [["CLIPConfig"], ["CLIPTokenizer"], ["AutoModel"]],
)
def test_an_architecture_that_is_no_model_is_refused_by_its_name(tmp_path, capsys, architectures):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "clip", "architectures": architectures}), "utf-8"
    )
    assert "architecture" in expect_one_line(["sites", tmp_path], capsys)


@pytest.mark.parametrize(
    "config", ["null", '{"model_type": "clip", "architectures": ["CLIPModel"], "vision_config": 5}']
)
def test_a_config_of_something_else_is_refused_in_one_line(tmp_path, capsys, config):
    (tmp_path / "config.json").write_text(config, "utf-8")
    assert str(tmp_path) in expect_one_line(["sites", tmp_path], capsys)


# Pipelines


def pipeline(folder: Path, ran: Path, **told: object) -> Path:
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1"}
    index |= {part: [None, None] for part in PARTS}
    files = {
        "model_index.json": index | told,
        "unet/config.json": {},
        "unet/model_index.json": told,
    }
    return stranger(folder, ran, files)


@pytest.mark.parametrize(
    "told",
    [
        {"_class_name": [MODULE, "Thing"]},
        {"unet": [MODULE, "Thing"]},
        {"unet": ["diffusers", "DiffusionPipeline"], "_class_name": [MODULE, "Thing"]},
    ],
    ids=["class", "component", "pipeline-in-a-pipeline"],
)
def test_a_pipeline_of_its_own_code_is_refused(tmp_path, ran, told):
    pytest.importorskip("diffusers")
    with pytest.raises(VlmEditError, match="never runs"):
        load_model(str(pipeline(tmp_path / "pipe", ran, **told)))
    assert not ran.exists()


@pytest.mark.parametrize("load", [load_model, load_pipeline])
def test_a_pipeline_imports_no_module_that_its_folder_names(tmp_path, ran, monkeypatch, load):
    pytest.importorskip("diffusers")
    stranger(tmp_path / "installed", ran, {"any": {}})
    monkeypatch.syspath_prepend(str(tmp_path / "installed"))
    named = {name: [MODULE, "Thing"] for name in ("unet", "scheduler", "clip", "processor")}
    folder = pipeline(tmp_path / "pipe", ran, **named)
    if load is load_pipeline:
        index = {"_class_name": "UnclipPipeline", "_diffusers_version": "0.42.1"} | named
        (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    (folder / "unet" / f"{MODULE}.py").unlink()
    with pytest.raises(VlmEditError, match="diffusers cannot load it"):
        load(str(folder))
    assert not ran.exists() and MODULE not in sys.modules


def test_draw_refuses_a_component_of_its_own_code(tmp_path, ran):
    pytest.importorskip("diffusers")
    parts = {name: [MODULE, "Thing"] for name in ("unet", "scheduler", "clip", "processor")}
    index = {"_class_name": "UnclipPipeline", "_diffusers_version": "0.42.1"} | parts
    files = {f"{name}/config.json": {} for name in parts}
    folder = stranger(tmp_path / "pipe", ran, {"model_index.json": index} | files)
    with pytest.raises(VlmEditError, match="never runs"):
        load_pipeline(str(folder))
    assert not ran.exists()


@pytest.mark.parametrize("load", [load_model, load_pipeline])
@pytest.mark.parametrize("version", ["0.37.1", "0.42.0", "0.42.1.dev0", "0.42.1rc1", "unknown"])
def test_a_diffusers_that_may_run_what_a_folder_names_is_refused(
    tmp_path, ran, monkeypatch, load, version
):
    diffusers = pytest.importorskip("diffusers")
    monkeypatch.setattr(diffusers, "__version__", version)
    folder = pipeline(tmp_path / "pipe", ran)
    with pytest.raises(VlmEditError, match=rf"diffusers {version}.*0\.42\.1"):
        load(str(folder))


@pytest.mark.parametrize("version", ["0.42.1", "0.42.2", "0.43.0", "1.0", "0.43.0.dev0"])
def test_later_versions_of_diffusers_are_taken(tmp_path, ran, monkeypatch, version):
    diffusers = pytest.importorskip("diffusers")
    monkeypatch.setattr(diffusers, "__version__", version)
    with pytest.raises(VlmEditError, match="never runs"):
        load_model(str(pipeline(tmp_path / "pipe", ran, unet=[MODULE, "Thing"])))


def test_the_extras_ask_for_a_diffusers_that_is_taken():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    asked = [
        need
        for extra in extras["optional-dependencies"].values()
        for need in extra
        if need.startswith("diffusers")
    ]
    assert asked == [f"diffusers>={DIFFUSERS}"] * 2


# The sources


def sources() -> list[Path]:
    found = [p for part in ("vlm_edit", "adapters", "docs") for p in (ROOT / part).rglob("*.py")]
    assert len(found) > 100
    return sorted(found)


def loads(path: Path) -> list[ast.Call]:
    """Calls that build what a folder names: ``X.from_pretrained``, and transformers' pipeline."""
    tree = ast.parse(path.read_text("utf-8"), str(path))
    pipelines = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "transformers"
        for alias in node.names
        if alias.name == "pipeline"
    }
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (
            (isinstance(node.func, ast.Attribute) and node.func.attr.startswith("from_pretrained"))
            or (isinstance(node.func, ast.Name) and node.func.id in pipelines)
            or (isinstance(node.func, ast.Attribute) and node.func.attr == "pipeline")
        )
    ]


def trusting(path: Path, said: str = "False") -> list[str]:
    return [
        f"{path}:{call.lineno}"
        for call in loads(path)
        if not any(
            word.arg == "trust_remote_code" and ast.unparse(word.value) == said
            for word in call.keywords
        )
    ]


def test_every_load_says_that_no_code_is_trusted_but_those_that_were_asked_for_it():
    assert sum(len(loads(path)) for path in sources()) > 20
    asked = ROOT / "vlm_edit" / "host" / "loading.py"
    assert [place for path in sources() if path != asked for place in trusting(path)] == []
    assert trusting(asked, "way.trusted") == [] and len(loads(asked)) == 4


def test_nobody_who_loads_trusts_unasked():
    for function in (Host.load, load, load_any_pipeline):
        assert inspect.signature(function).parameters["trust_remote_code"].default is False
    assert Loading().trust_remote_code is False


def test_a_load_that_says_nothing_would_be_found(tmp_path):
    (tmp_path / "a.py").write_text(
        "import transformers\nfrom transformers import pipeline as p\n"
        "AutoModel.from_pretrained(folder)\nA.from_pretrained(folder, trust_remote_code=True)\n"
        "p('text')\ntransformers.pipeline('text')\nA.from_pretrained(f, trust_remote_code=False)\n",
        "utf-8",
    )
    assert [int(place.split(":")[-1]) for place in trusting(tmp_path / "a.py")] == [3, 4, 5, 6]
