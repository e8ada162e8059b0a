"""Checkpoints that other libraries wrote give those libraries' codes and reconstructions.

Each zip in ``golden`` was written by the script of its name there, in that library's environment.
"""

import os
import shutil
import subprocess
from dataclasses import replace

import pytest
import torch
from golden import pack
from golden.read import FOLDER, cases, check

from vlm_edit import Dictionary, load_dictionary, zoo
from vlm_edit.dictionaries import (
    Encoder,
    Layout,
    PairedDictionary,
    TrainConfig,
    save_saelens,
    train_dictionary,
    train_paired,
)
from vlm_edit.testing import check_format

pytestmark = pytest.mark.kernels

SAE_LENS = os.environ.get("VLM_EDIT_SAE_LENS_PYTHON")


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.archive.stem}-{case.name}")
def test_what_the_library_computes_comes_out(case, tmp_path):
    check(case, tmp_path)


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.archive.stem}-{case.name}")
def test_every_format_passes_the_suite_that_those_of_others_are_given(case, tmp_path):
    files, said, _ = case.unpack(tmp_path)
    if "refused" in said:
        return
    options = dict(said["options"])
    if "layout" in options:
        options["layout"] = Layout(**options["layout"])
    check_format(files / said["path"], **options)


def test_all_golden_files_together_stay_small():
    sizes = [file.stat().st_size for file in FOLDER.glob("*.zip")]
    assert max(sizes, default=0) < 200_000
    assert sum(sizes) < 1_200_000


needs_sae_lens = pytest.mark.skipif(
    not SAE_LENS,
    reason="needs the environment that golden/saelens.py describes: VLM_EDIT_SAE_LENS_PYTHON="
    "VENV/bin/python python -m pytest tests/dictionaries/test_golden.py -k sae_lens_reads",
)


def expect_agreement(root, count):
    """sae-lens finds in so many cases what we expect of them."""
    command = [str(SAE_LENS), str(FOLDER / "saelens.py"), "--check", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} cases agree" in done.stdout


@needs_sae_lens
def test_sae_lens_reads_what_is_saved_here(tmp_path):
    g = torch.Generator().manual_seed(0)
    for activation in ("relu", "topk", "topk_abs", "jumprelu"):
        for norm in ("none", "layer_norm", "constant_norm_rescale"):
            for m, subtracts in ((8, True), (6, False)):
                bias = torch.randn(6, generator=g)
                encoder = Encoder(
                    torch.randn(6, m, generator=g),
                    torch.randn(m, generator=g),
                    activation,
                    threshold=torch.rand(m, generator=g) if activation == "jumprelu" else None,
                    k=3 if activation.startswith("topk") else None,
                    subtract=bias if subtracts else None,
                    norm=norm,
                )
                dictionary = Dictionary(encoder, torch.randn(m, 6, generator=g), bias)
                case = f"{activation}-{norm}-{m}"
                save_saelens(dictionary, pack.files(tmp_path, case))
                x = torch.randn(7, 6, generator=g) * 3 + 1
                codes, found = dictionary.encode(x), dictionary.reconstruct(x)
                pack.expect(tmp_path, case, x, codes, found)
                back = load_dictionary(tmp_path / case / "files")
                assert torch.equal(back.encode(x), codes)
    expect_agreement(tmp_path, 24)


@needs_sae_lens
def test_sae_lens_reads_each_stream_of_what_is_trained_here(tmp_path):
    g = torch.Generator().manual_seed(0)
    streams = {s: torch.randn(400, 6, generator=g) + 4 * torch.randn(6, generator=g)
               for s in ("image", "text")}  # fmt: skip
    config = TrainConfig(n_features=16, k=3, steps=50, batch_size=64)
    made = {"zoo": zoo.load_dictionary("joint")}
    for kind in ("batchtopk", "topk", "relu"):
        made[kind] = train_dictionary(streams, replace(config, kind=kind), progress=False)
    made["ncl"] = train_dictionary(streams, TrainConfig(16, 16, 50, 64, kind="ncl"), progress=False)
    made["separate"] = train_paired(streams, config, progress=False)
    made["image"] = train_dictionary({"image": streams["image"]}, config, progress=False)
    count = 0
    for name, found in made.items():
        save_saelens(found, tmp_path / "saved" / name)
        for stream in ("image", "text") if name != "image" else ("image",):
            half = found.of(stream) if isinstance(found, PairedDictionary) else found
            folder = tmp_path / "saved" / name / (stream if name != "image" else "")
            case = f"{name}-{stream}"
            shutil.copytree(folder, pack.files(tmp_path / "cases", case), dirs_exist_ok=True)
            x = torch.randn(9, half.width, generator=g) * 3 + 1
            told = (half.encode(x, stream), half.reconstruct(x, stream))
            pack.expect(tmp_path / "cases", case, x, *told)
            count += 1
    expect_agreement(tmp_path / "cases", count)
