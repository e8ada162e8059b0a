"""``vlm-edit patch``, as typed, on the zoo's CLIP and on a folder of a model."""

from pathlib import Path

import pytest
import torch

from vlm_edit import Ablate, Dictionary, Patch, Scale, load_patch, zoo
from vlm_edit.cli import main
from vlm_edit.cli.host import load_host

CLIP = "zoo:emoji-clip"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patches a, b and of raw neurons, and the host as a folder."""
    folder = tmp_path_factory.mktemp("patches")
    host, processor = zoo.load_host()
    joint = zoo.load_dictionary("joint")
    info = {"class": "vision", "note": "red\x1b[31m"}
    Patch("joint", joint, [Ablate([7, 12]), Scale([3], 2.0)], "image", info).save(
        folder / "a.safetensors", host
    )
    Patch("joint", joint, Ablate([7, 13]), "image").save(folder / "b.safetensors", host)
    Patch("joint", Dictionary.identity(192), Ablate([3, 5])).save(folder / "n.safetensors", host)
    host.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    (folder / "model" / "README.md").write_text("---\nlicense: mit\n---\nof the model")
    (folder / "model" / "labels.txt").write_text("kept")
    (folder / "model" / "old.bin").write_text("weights")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main(["patch", *map(str, arguments)])
    told = capsys.readouterr()
    return status, told.out, told.err


def test_info_prints_what_is_in_a_file(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "info", files / "a.safetensors")
    lines = [line.split() for line in out.splitlines()]
    assert status == 0
    assert ["joint", "image", "tokens", "ablate", "7,", "12", "2"] in lines
    assert ["joint", "image", "tokens", "scale,", "factor", "2", "3", "1"] in lines
    assert "host:        CLIPModel" in out
    assert zoo.load_dictionary("joint").digest() in out and "model_name emoji-clip" in out
    assert "class:       vision" in out and "written by:  vlm_edit" in out
    assert "\x1b" not in out


def test_info_of_a_file_of_the_first_format_says_what_it_lacks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    old = Path(__file__).parents[1] / "patches" / "golden" / "version-1" / "two.safetensors"
    status, out, _ = run(capsys, "info", old)
    assert status == 0 and "a version that kept neither versions nor dictionary" in out
    assert "which is not known" in out and "gölden" in out


def test_info_as_a_card_is_the_patchs_own(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "info", "--card", files / "a.safetensors")
    assert (status, out) == (0, load_patch(files / "a.safetensors").card())


def test_a_folder_of_several_needs_the_name_of_one(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        (tmp_path / f"{name}.safetensors").write_bytes((files / f"{name}.safetensors").read_bytes())
    status, _, err = run(capsys, "info", tmp_path)
    assert status == 2 and "several patches: say which with --file:" in err
    status, out, _ = run(capsys, "info", tmp_path, "--file", "b.safetensors")
    assert status == 0 and "7, 13" in out


def test_of_a_folder_only_files_that_are_patches_are_meant(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights of models and dictionaries and measurements are not patches by their header."""
    from safetensors.torch import save_file

    from vlm_edit.dictionaries import save_saelens
    from vlm_edit.ground.files import write_tensors

    (tmp_path / "model.safetensors").write_bytes(
        (files / "model" / "model.safetensors").read_bytes()
    )
    save_saelens(zoo.load_dictionary("joint"), tmp_path / "sae")
    write_tensors(tmp_path / "measurement.safetensors", {"n": torch.ones(1)}, {"version": 1})
    save_file({"n": torch.ones(1)}, tmp_path / "plain.safetensors")
    status, _, err = run(capsys, "info", tmp_path)
    assert status == 2 and "there is no .safetensors file that is a patch; it has" in err
    (tmp_path / "a.safetensors").write_bytes((files / "a.safetensors").read_bytes())
    status, out, _ = run(capsys, "info", tmp_path)
    assert status == 0 and "7, 12" in out
    old = Path(__file__).parents[1] / "patches" / "golden" / "version-1" / "two.safetensors"
    (tmp_path / "old.safetensors").write_bytes(old.read_bytes())
    status, _, err = run(capsys, "info", tmp_path)
    listed = err.split("say which with --file:")[1]
    assert status == 2 and "a.safetensors" in listed and "old.safetensors" in listed
    assert "model" not in listed and "sae" not in listed and "plain" not in listed
    status, _, err = run(capsys, "info", tmp_path, "--file", "model.safetensors")
    assert status == 2 and "not a patch" in err


def test_a_patch_that_is_cut_off_is_not_passed_over(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.safetensors").write_bytes((files / "a.safetensors").read_bytes()[:50])
    status, _, err = run(capsys, "info", tmp_path)
    assert status == 2 and "a.safetensors is not a readable safetensors file" in err


@pytest.mark.parametrize("model", [CLIP, "folder", "owner/model"])
def test_a_patch_in_the_models_place_is_told_with_the_right_order(
    model: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(files / "model") if model == "folder" else model
    patch = files / "a.safetensors"
    status, _, err = run(capsys, "apply", patch, model)
    assert status == 2
    assert f"is a patch, and the model comes first: vlm-edit patch apply {model} {patch}" in err


def test_a_model_in_the_patchs_place_is_told_likewise(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model in (CLIP, str(files / "model")):
        status, _, err = run(capsys, "apply", "owner/patch", model)
        assert status == 2 and f"{model} is a model, and it comes first" in err


def test_a_model_folder_that_holds_a_patch_is_a_place_of_patches(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "a.safetensors").write_bytes((files / "a.safetensors").read_bytes())
    assert run(capsys, "apply", CLIP, tmp_path)[0] == 0


def test_the_zoos_patch_goes_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "apply", CLIP, "zoo:robust-emoji-clip")
    assert status == 0 and "vision.0" in out
    status, _, err = run(capsys, "info", "zoo:lion")
    assert status == 2 and "no bundled patch 'lion'" in err


def test_a_damaged_file_is_refused_and_read_without_verifying(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray((files / "a.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "p.safetensors").write_bytes(data)
    status, _, err = run(capsys, "info", tmp_path / "p.safetensors")
    assert status == 2 and "a byte or more has changed" in err and "with --no-verify" in err
    assert run(capsys, "info", "--no-verify", tmp_path / "p.safetensors")[0] == 0


def test_apply_says_where_a_patch_fits_or_why_not(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run(capsys, "apply", CLIP, files / "a.safetensors")
    assert status == 0 and "joint  192    visual_projection" in out
    status, _, err = run(capsys, "apply", "zoo:emoji-llava", files / "a.safetensors")
    assert status == 2 and "has no site 'joint'" in err


def test_apply_of_another_models_patch_needs_the_override(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host, processor = zoo.load_host()
    with torch.no_grad():
        host.visual_projection.weight.neg_()
    host.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    status, _, err = run(capsys, "apply", tmp_path, files / "a.safetensors")
    assert status == 2 and "visual_projection differ" in err
    assert run(capsys, "apply", tmp_path, files / "a.safetensors", "--no-check-host")[0] == 0


@pytest.mark.parametrize("model", [CLIP, "folder"])
def test_a_baked_folder_is_a_model_that_does_what_the_patch_does(
    files: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(files / "model") if model == "folder" else model
    out = tmp_path / "baked"
    status, told, _ = run(capsys, "apply", source, files / "n.safetensors", "--bake", out)
    assert status == 0 and "changed: visual_projection.weight" in told
    assert [p.name for p in tmp_path.iterdir()] == ["baked"]
    loaded = load_host(source)
    plain, processor = loaded.root, loaded.processor
    baked = load_host(str(out)).root
    inputs = processor(text=["a cat"], images=[zoo.load_pairs().open(0)], return_tensors="pt")
    with torch.no_grad():
        before = plain(**inputs).logits_per_image
        with load_patch(files / "n.safetensors").attach(plain):
            wanted = plain(**inputs).logits_per_image
        found = baked(**inputs).logits_per_image
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert float((found - before).abs().max()) > 1e-3
    if model == "folder":
        assert (out / "labels.txt").read_text() == "kept"
        assert not (out / "old.bin").exists()
    card = (out / "README.md").read_text()
    known = "mit" if model == "folder" else "apache-2.0"
    assert f"- the host: {known}" in card and "- the dictionary of `joint`: " in card
    assert "of the model" not in card


def test_what_cannot_be_baked_writes_nothing(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = run(capsys, "apply", CLIP, files / "a.safetensors", "--bake", tmp_path / "x")
    assert status == 2 and "jumprelu is not linear; attach the patch instead" in err
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_no_folder(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("vlm_edit.cli.patching.shutil.copyfile", full)
    bake = ["apply", files / "model", files / "n.safetensors", "--bake", tmp_path / "x"]
    status, _, err = run(capsys, *bake)
    assert status == 2 and "disk full" in err
    assert not list(tmp_path.iterdir())


def test_merge_keeps_every_edit_in_order(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts, out = [files / f"{name}.safetensors" for name in "abn"], tmp_path / "c.safetensors"
    status, told, _ = run(capsys, "merge", *parts, "--out", out)
    assert status == 0 and "3 edits of 3 patches" in told
    merged = load_patch(out)
    rules = [b.splice.rules for part in parts for b in load_patch(part).bindings]
    assert [b.splice.rules for b in merged.bindings] == rules
    merged.attach(zoo.load_host()[0]).remove()


def test_what_is_there_already_is_never_written_over(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patch, there = files / "n.safetensors", tmp_path / "there"
    there.write_text("mine")
    for arguments in (
        ["merge", patch, patch, "--out", there],
        ["apply", CLIP, patch, "--bake", there],
    ):
        status, _, err = run(capsys, *arguments)
        assert status == 2 and "is there already" in err
    assert there.read_text() == "mine"
    status, _, err = run(capsys, "merge", patch, patch, "--out", tmp_path / "no" / "c")
    assert status == 2 and "its folder does not exist" in err


def test_patches_of_different_models_are_not_merged(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = Path(__file__).parents[1] / "patches" / "golden" / "version-1" / "joint.safetensors"
    merge = ["merge", files / "a.safetensors", old, "--out", tmp_path / "c"]
    status, _, err = run(capsys, *merge)
    assert status == 2 and "do not belong to one host" in err
    assert not list(tmp_path.iterdir())


def test_diff_tells_what_differs_by_its_status_and_in_words(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = files / "a.safetensors", files / "b.safetensors"
    status, out, _ = run(capsys, "diff", a, b)
    assert status == 1 and "also 12" in out and "also 13" in out and "scale, factor 2" in out
    assert "\x1b" not in out
    status, out, _ = run(capsys, "diff", a, a)
    assert (status, out) == (0, "the same edits, of the same host\n")
    assert run(capsys, "diff", a, files / "nothing.safetensors")[0] == 2
