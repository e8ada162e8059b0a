"""Patch files that former versions wrote load, and do what they did."""

import pytest
import torch
from golden.write_patches import ADAPTER, FOLDER, Plain, make_inputs, run
from safetensors.torch import load_file

from vlm_edit import Host, load_patch

pytestmark = pytest.mark.kernels

VERSIONS = sorted(FOLDER.glob("version-*"))
FILES = [
    file
    for folder in VERSIONS
    for file in sorted(folder.glob("*.safetensors"))
    if file.stem != "expected"
]


def part(tensors, prefix):
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


@pytest.fixture(scope="module")
def expected():
    return {folder.name: load_file(folder / "expected.safetensors") for folder in VERSIONS}


def host_of(tensors):
    host = Plain().eval()
    host.load_state_dict(part(tensors, "host."))
    return host


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_file_of_a_former_version_does_what_it_did(file, expected, tmp_path):
    tensors = expected[file.parent.name]
    host, inputs = host_of(tensors), part(tensors, "inputs.")
    plain, stored = run(host, inputs), tensors["output.nothing"]  # here, and on another processor
    torch.testing.assert_close(plain, stored, rtol=1e-5, atol=1e-5)
    former = load_patch(file)
    former.save(tmp_path / "again")  # as today's version
    for patch in (former, load_patch(tmp_path / "again")):
        with patch.attach(Host.of(host, adapter=ADAPTER)):
            found = run(host, inputs)
        wanted = tensors[f"output.{file.stem}"]
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        assert torch.equal(found == plain, wanted == stored)  # the same tokens are left alone
        assert not torch.equal(found, plain)
    assert torch.equal(run(host, inputs), plain)


def test_every_case_is_kept_and_the_files_stay_small(expected):
    for folder in VERSIONS:
        kept = {file.stem for file in folder.glob("*.safetensors")} - {"expected"}
        assert kept == set(part(expected[folder.name], "output.")) - {"nothing"}
        assert sum(file.stat().st_size for file in folder.iterdir()) < 150_000
    first = expected["version-1"]
    for name, value in make_inputs().items():
        torch.testing.assert_close(value, first[f"inputs.{name}"])
