"""Where a model is put and in what form: devices, maps of them, bits, adapters by name."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_llava

from vlm_edit import Adapter, Host, VlmEditError, zoo
from vlm_edit.ground.errors import BadArgument
from vlm_edit.host import loaded_as
from vlm_edit.host.telling import one_line, sentences
from vlm_edit.measuring import measure


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA in half precision."""
    folder = tmp_path_factory.mktemp("llava")
    make_llava().to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zoo's CLIP and its processor, in a folder."""
    folder = tmp_path_factory.mktemp("clip")
    for part in zoo.load_host():
        part.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_linear_layers_are_quantized_by_bitsandbytes_itself(folder: Path, bits: Any) -> None:
    host = Host.load(folder, "cpu", quantize=bits)
    layer = host.root.model.language_model.layers[0].self_attn.q_proj
    kinds = {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}
    assert type(layer).__name__ == kinds[bits]
    assert layer.weight.dtype == (torch.int8 if bits == "8bit" else torch.uint8)
    assert loaded_as(host) == {
        "dtype": "bfloat16", "quantization": f"bitsandbytes {bits}", "revision": None
    }  # fmt: skip
    assert host.device == torch.device("cpu") and "language.1" in host.sites


def test_a_folder_that_was_saved_quantized_is_loaded_so(folder: Path, tmp_path: Path) -> None:
    Host.load(folder, "cpu", quantize="8bit").root.save_pretrained(tmp_path)
    host = Host.load(tmp_path, "cpu")
    assert loaded_as(host)["quantization"] == "bitsandbytes 8bit"


def test_a_quantized_host_is_nearly_the_host_and_is_measured(clip: Path) -> None:
    pairs, dictionary = zoo.load_pairs().select(range(24)), zoo.load_dictionary("joint")
    whole, small = (
        measure(Host.load(clip, "cpu", quantize=bits), pairs, dictionary, progress=False)
        for bits in (None, "8bit")
    )
    there, here = (found.provenance["host"]["quantization"] for found in (whole, small))
    assert (there, here) == (None, "bitsandbytes 8bit")
    both = ~(whole.dominance.dead | small.dominance.dead)
    apart = (whole.dominance.scores - small.dominance.scores)[both].abs()
    assert apart.max() > 0 and apart.median() < 0.05


@pytest.mark.parametrize("missing", ["bitsandbytes", "accelerate"])
def test_without_what_quantizes_the_extra_is_named_before_anything_is_loaded(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(VlmEditError, match=rf"quantize='8bit' needs {missing}, .*vlm-edit\[quant"):
        Host.load("no-such-model", quantize="8bit")
    if missing == "accelerate":
        with pytest.raises(VlmEditError, match=r"device_map='auto' needs accelerate.*\[accelerate"):
            Host.load("no-such-model", device_map="auto")


def test_a_pipeline_that_cannot_be_quantized_here_says_why_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from tiny_pipelines import PIPELINES

    if torch.cuda.is_available():
        pytest.skip("it can")
    PIPELINES["sd"].make().save_pretrained(tmp_path)
    with pytest.raises(VlmEditError, match=r"diffusers cannot load it: No GPU found\. A GPU is"):
        Host.load(tmp_path, quantize="8bit")
    host = Host.load(tmp_path, device_map="balanced", dtype="bfloat16")
    assert host.is_pipeline and loaded_as(host)["dtype"] == "bfloat16"


@pytest.mark.parametrize("spread", ["auto", "balanced", {"": "cpu"}])
def test_a_host_is_spread_by_accelerate_and_is_the_same(folder: Path, spread: Any) -> None:
    host, plain = Host.load(folder, device_map=spread), Host.load(folder, "cpu")
    there = plain.root.state_dict()
    assert all(torch.equal(there[n], t.cpu()) for n, t in host.root.state_dict().items())
    assert list(host.sites) == list(plain.sites) and not host.root.training


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_host_that_lies_on_the_disk_takes_inputs_where_it_runs(clip: Path) -> None:
    pairs = zoo.load_pairs().select(range(3))
    images = [pairs.open(i) for i in range(3)]
    here, there = (
        Host.load(clip, **way) for way in ({"device": "cpu"}, {"device_map": {"": "disk"}})
    )
    assert all(p.is_meta for p in there.root.parameters()) and there.device.type != "meta"
    outputs = [h(**h.inputs(images, pairs.texts).values).logits_per_image for h in (here, there)]
    assert torch.allclose(outputs[0], outputs[1].to(outputs[0].device), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cpu", "device_map": "auto"}, "device='cpu' and device_map='auto' both say"),
        ({"device": torch.device("cpu"), "device_map": "auto"}, "device='cpu' and device_map="),
        ({"quantize": "2bit"}, r"quantize is '2bit'; take one of \('4bit', '8bit'\)"),
        ({"device_map": "nonsense"}, "transformers cannot load it: When passing device_map as a"),
        ({"device": "meta:x"}, "device 'meta:x' is none that torch knows"),
    ],
)
def test_what_cannot_be_is_refused(folder: Path, options: Any, message: str) -> None:
    with pytest.raises(VlmEditError, match=message):
        Host.load(folder, **options)


@pytest.mark.parametrize("device", ["cuda", "cuda:99", "mps"])
def test_a_device_that_is_not_there_is_refused_in_one_line_before_anything_is_loaded(
    device: str,
) -> None:
    if device.startswith(best := str(Host.load("zoo:emoji-clip").device.type)) and device == best:
        pytest.skip("it is there")
    with pytest.raises(BadArgument, match=f"device '{device}' cannot be used here: .+") as caught:
        Host.load("no-such-model", device)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"device_map": "auto"}, {"quantize": "8bit"}])
def test_what_a_distribution_brings_comes_whole(options: Any) -> None:
    (name, value), *_ = options.items()
    with pytest.raises(BadArgument, match=f"'zoo:emoji-clip' comes whole .*{name}='{value}' goes"):
        Host.load("zoo:emoji-clip", **options)


# Adapters by name


def test_an_adapter_is_named_by_its_module(folder: Path) -> None:
    host = Host.load(folder, "cpu", adapter="vlm_edit_adapters.llava:adapter")
    assert isinstance(host.adapter, Adapter) and "projector" in host.sites


def test_a_pipelines_adapter_is_joined_from_its_encoders() -> None:
    pytest.importorskip("diffusers")
    named = {"adapter": "vlm_edit_adapters.diffusers:unclip"}
    by_name = Host.load("zoo:emoji-unclip", "cpu", **named)
    assert list(by_name.sites) == list(Host.load("zoo:emoji-unclip", "cpu").sites)
    with pytest.raises(BadArgument, match="is a PipelineAdapter, and CLIPModel is no pipeline"):
        Host.load("zoo:emoji-clip", **named)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("clip", "write module:name"),
        (":adapter", "write module:name"),
        ("no_such_module:adapter", "no_such_module cannot be imported: ModuleNotFoundError"),
        ("vlm_edit_adapters.clip:nothing", "the module vlm_edit_adapters.clip has no 'nothing'"),
        ("json:dumps", "is a function, not an Adapter"),
        ("broken_adapter:x", "cannot be imported: ZeroDivisionError: division by zero"),
    ],
)
def test_what_is_no_adapter_is_refused_before_anything_is_loaded(
    reference: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_adapter.py").write_text("1 / 0\n", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BadArgument, match=message):
        Host.load("no-such-model", adapter=reference)


# What is told


SHARDS = "Error(s) in loading: " + " ".join(f"size mismatch for layer.{i}." for i in range(99))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("It is missing. See the\ninstructions on the\npage: x.", "It is missing. See the "
         "instructions on the page: x"),
        ("", "OSError"),
        ("One.\n\nTwo.\n", "One. Two"),
        ("A short one. " + "long " * 99, "A short one"),
        ("word " * 99, f"{'word ' * 79}word .."),
    ],
)  # fmt: skip
def test_of_what_a_library_says_whole_sentences_are_told(said: str, told: str) -> None:
    with pytest.raises(VlmEditError) as caught, one_line("m", mend="Mend it"):
        raise OSError(said)
    assert str(caught.value) == f"m: transformers cannot load it: {told}. Mend it"


def test_a_flood_is_cut_behind_a_sentence() -> None:
    told = sentences(SHARDS)
    assert 300 < len(told) <= 400 and SHARDS.startswith(f"{told}. ")


def test_why_a_processor_is_not_there_is_told_in_whole_sentences(
    folder: Path, tmp_path: Path
) -> None:
    """Without torchvision Qwen's processor refuses in several lines."""
    import transformers

    if transformers.utils.is_torchvision_available():
        pytest.skip("it can be loaded")
    Host.load(folder, "cpu").root.save_pretrained(tmp_path)
    kind = {"processor_class": "Qwen2_5_VLProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(kind), "utf-8")
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(kind | {"image_processor_type": "Qwen2VLImageProcessor"}), "utf-8"
    )
    (tmp_path / "video_preprocessor_config.json").write_text(
        json.dumps({"video_processor_type": "Qwen2VLVideoProcessor"}), "utf-8"
    )
    host = Host.load(tmp_path, "cpu")
    with pytest.raises(VlmEditError) as caught:
        host.inputs([], [])
    told = str(caught.value)
    assert "transformers cannot load it" in told and "on the." not in told, told
    assert "\n" not in told
