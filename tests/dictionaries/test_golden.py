"""Checkpoints that other libraries wrote give those libraries' codes and reconstructions.

Each zip in ``golden`` was written by the script of its name there, in that library's environment.
"""

import os
import subprocess

import pytest
import torch
from golden import pack
from golden.read import FOLDER, cases, check

from vlm_edit import Dictionary, load_dictionary
from vlm_edit.dictionaries import Encoder, save_saelens

pytestmark = pytest.mark.kernels

SAE_LENS = os.environ.get("VLM_EDIT_SAE_LENS_PYTHON")


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.archive.stem}-{case.name}")
def test_what_the_library_computes_comes_out(case, tmp_path):
    check(case, tmp_path)


def test_all_golden_files_together_stay_small():
    sizes = [file.stat().st_size for file in FOLDER.glob("*.zip")]
    assert max(sizes, default=0) < 200_000
    assert sum(sizes) < 1_000_000


@pytest.mark.skipif(
    not SAE_LENS,
    reason="needs the environment that golden/saelens.py describes: VLM_EDIT_SAE_LENS_PYTHON="
    "VENV/bin/python python -m pytest tests/dictionaries/test_golden.py -k sae_lens_reads",
)
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
    command = [str(SAE_LENS), str(FOLDER / "saelens.py"), "--check", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "24 cases agree" in done.stdout
