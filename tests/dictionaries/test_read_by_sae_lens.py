"""sae-lens itself reads all that is saved for it, to the same codes and reconstructions.

``golden/saelens.py`` says which environment that needs, and compares there.
"""

import os
import re
import shutil
import subprocess
from dataclasses import replace
from itertools import product

import pytest
import torch
from golden import pack
from golden.read import FOLDER, cases

from vlm_edit import Dictionary, VlmEditError, load_dictionary, zoo
from vlm_edit.dictionaries import (
    Encoder,
    Layout,
    PairedDictionary,
    TrainConfig,
    save_saelens,
    train_dictionary,
    train_paired,
)

SAE_LENS = os.environ.get("VLM_EDIT_SAE_LENS_PYTHON")
STREAMS = ("image", "text")
NORMS = ("none", "layer_norm", "constant_norm_rescale")

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(
        not SAE_LENS,
        reason="needs the environment that golden/saelens.py describes: VLM_EDIT_SAE_LENS_PYTHON="
        "VENV/bin/python python -m pytest tests/dictionaries/test_read_by_sae_lens.py",
    ),
]


class Written:
    """Dictionaries that were saved, each of its folders a case for sae-lens."""

    def __init__(self, root):
        self.root, self.count = root, 0

    def add(self, name, found, x=None, tolerance=1e-5, dtype=torch.float32):
        """Save one, and say of each stream what sae-lens must find."""
        saved = self.root / "saved" / name
        save_saelens(found, saved, dtype)
        split = (saved / "image").is_dir()
        for stream in STREAMS if split else (next(iter(self.centers(found)), None),):
            half = found.of(stream) if isinstance(found, PairedDictionary) else found
            case = f"{name}-{stream}"
            folder = saved / stream if split else saved
            shutil.copytree(folder, pack.files(self.root / "cases", case), dirs_exist_ok=True)
            given = activations(half.width, self.count) if x is None else x.float()
            outputs = getattr(half, "predict", None) or half.reconstruct  # a transcoder predicts
            answer = (half.encode(given, stream), outputs(given, stream))
            pack.expect(self.root / "cases", case, given, *answer, tolerance=tolerance)
            self.count += 1

    @staticmethod
    def centers(found):
        return found.encoder.centers if isinstance(found, Dictionary) else ()

    def expect_agreement(self):
        """sae-lens finds what was said, in every case."""
        command = [str(SAE_LENS), str(FOLDER / "saelens.py"), "--check", str(self.root / "cases")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr
        assert f"{self.count} cases agree" in done.stdout


def activations(width, seed):
    return torch.randn(7, width, generator=torch.Generator().manual_seed(seed)) * 3 + 1


def made(seed, activation, norm="none", subtract="bias", streams=(), dtype=torch.float32):
    """A random dictionary, of numbers that a dtype has."""
    g = torch.Generator().manual_seed(seed)
    m = 6 + 2 * (seed % 2)

    def draw(*shape):
        return torch.randn(*shape, generator=g).to(dtype).float()

    bias = draw(6)
    encoder = Encoder(
        draw(6, m),
        draw(m),
        activation,
        threshold=draw(m).abs() if activation == "jumprelu" else None,
        k=3 if "topk" in activation else None,
        subtract={"bias": bias, "none": None, "other": draw(6)}[subtract],
        norm=norm,
        centers={stream: 3 * draw(6) for stream in streams},
    )
    return Dictionary(encoder, draw(m, 6), bias)


def test_of_every_activation_norm_offset_and_center(tmp_path):
    written = Written(tmp_path)
    choices = product(
        ("relu", "topk", "topk_abs", "jumprelu"), NORMS, ("bias", "none", "other"),
        ((), ("image",), STREAMS),
    )  # fmt: skip
    for seed, (activation, norm, subtract, streams) in enumerate(choices):
        name = f"{activation}-{norm}-{subtract}-{len(streams)}"
        written.add(name, made(seed, activation, norm, subtract, streams))
    assert written.count == 4 * 3 * 3 * 4  # of two streams there are two folders
    written.expect_agreement()


def test_of_two_dictionaries_of_one_width_and_of_half_precision(tmp_path):
    written = Written(tmp_path)
    for seed, activation in enumerate(("relu", "topk", "topk_abs", "jumprelu")):
        pair = [made(seed + 10 * i, activation, streams=[s]) for i, s in enumerate(STREAMS)]
        written.add(f"paired-{activation}", PairedDictionary(*pair))
        for dtype in (torch.float16, torch.bfloat16):
            whole = made(seed, activation, dtype=dtype)  # rounded already
            written.add(f"{activation}-{dtype}", whole, dtype=dtype)
    centred = made(1, "relu", streams=STREAMS)  # what is folded is rounded besides
    written.add("centred-half", centred, dtype=torch.float16, tolerance=5e-3)
    assert written.count == 4 * (2 + 2) + 2
    written.expect_agreement()


def test_each_stream_of_every_kind_that_is_trained_here(tmp_path):
    g = torch.Generator().manual_seed(0)
    streams = {s: torch.randn(400, 6, generator=g) + 4 * torch.randn(6, generator=g)
               for s in STREAMS}  # fmt: skip
    config = TrainConfig(n_features=16, k=3, steps=50, batch_size=64)
    written = Written(tmp_path)
    written.add("zoo", zoo.load_dictionary("joint"))
    for kind in ("batchtopk", "topk", "relu", "jumprelu", "gated", "matryoshka"):
        for norm in NORMS:
            of = replace(config, kind=kind, norm=norm)
            written.add(f"{kind}-{norm}", train_dictionary(streams, of, progress=False))
    mixed = replace(config, kind="archetypal", points=40)
    written.add("archetypal", train_dictionary(streams, mixed, progress=False))
    ncl = TrainConfig(16, 16, 50, 64, kind="ncl")
    written.add("ncl", train_dictionary(streams, ncl, progress=False))
    written.add("separate", train_paired(streams, config, progress=False))
    written.add("image", train_dictionary({"image": streams["image"]}, config, progress=False))
    free = replace(config, center=False)
    written.add("uncentred", train_dictionary(streams, free, progress=False))
    assert written.count == 2 + 6 * 3 * 2 + 2 * 3 + 1 + 1
    written.expect_agreement()


def test_of_every_checkpoint_of_another_library_that_can_be_saved(tmp_path):
    """What cannot is refused with a reason: it is of a sort that sae-lens does not have."""
    written, refused = Written(tmp_path), {}
    for i, case in enumerate(cases()):
        files, said, expected = case.unpack(tmp_path / "golden" / case.archive.stem)
        if "refused" in said:
            continue
        options = dict(said["options"])
        if "layout" in options:
            options["layout"] = Layout(**options["layout"])
        found = load_dictionary(files / said["path"], **options)
        name = f"{i}-{case.name}"
        try:
            written.add(name, found, expected["x"], said["tolerance"])
        except VlmEditError as error:
            refused[name] = str(error)
    reasons = re.compile("SAELens.* has no (architecture|transcoder)|nothing for soft_cap")
    assert {name: text for name, text in refused.items() if not reasons.search(text)} == {}
    print(f"{written.count} folders, {len(refused)} refused")
    assert written.count > 300
    written.expect_agreement()
