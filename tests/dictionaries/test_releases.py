"""The index of public dictionaries, what its names lead to, and its table."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from vlm_edit import Dictionary, VlmEditError, load_dictionary
from vlm_edit.dictionaries import (
    Encoder,
    PairedDictionary,
    Rows,
    StoredDictionary,
    save_saelens,
)
from vlm_edit.dictionaries.formats import FORMATS
from vlm_edit.dictionaries.formats.licence import licensed
from vlm_edit.dictionaries.releases import releases, resolve
from vlm_edit.dictionaries.transcoder import Transcoder

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = runpy.run_path(str(ROOT / "docs" / "experiments" / "dictionaries" / "index.py"))
COMMIT = "c" * 40
PRISMA = "Prisma-Multimodal"


def test_every_release_is_of_a_format_that_is_read_and_of_a_repository():
    assert len(releases()) > 100
    for name, release in releases().items():
        assert name == release.release
        assert release.format in FORMATS.names(), name
        assert release.read in SCRIPT["MARKS"], name
        assert release.site.count("{}") <= 1, name
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", release.repo), name
        if release.example:
            assert release.place(release.example)


@pytest.mark.parametrize(
    ("release", "sae_id", "repo", "file"),
    [
        (
            "gemma-scope-2b-pt-res",
            "layer_20/width_16k/average_l0_71",
            "google/gemma-scope-2b-pt-res",
            "layer_20/width_16k/average_l0_71",
        ),
        (
            "gemma-scope-2b-pt-res-canonical",
            "layer_0/width_16k/canonical",
            "google/gemma-scope-2b-pt-res",
            "layer_0/width_16k/average_l0_105",
        ),
        ("llama_scope_lxr_8x", "l15r_8x", "fnlp/Llama3_1-8B-Base-LXR-8x",
         "Llama3_1-8B-Base-L15R-8x"),
        ("qwen-scope-3-8b-base-w64k-l50", "layer7", "Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50",
         "layer7.sae.pt"),
        ("goodfire-llama-3.1-8b-instruct", "layer_19", "Goodfire/Llama-3.1-8B-Instruct-SAE-l19",
         "Llama-3.1-8B-Instruct-SAE-l19.pth"),
        ("gemma-scope-2-4b-pt-res", "layer_17_width_16k_l0_big", "google/gemma-scope-2-4b-pt",
         "resid_post/layer_17_width_16k_l0_big"),
        ("gytdau/clip-sae-128", None, "gytdau/clip-sae-128", None),
    ],
)  # fmt: skip
def test_names_of_saelens_lead_where_its_own_list_leads(release, sae_id, repo, file):
    assert resolve(release, sae_id) == (repo, file)


def test_a_release_is_loaded_from_the_cache_by_its_names(tmp_path, monkeypatch):
    home = tmp_path / "models--google--gemma-scope-2b-pt-res"
    folder = home / "snapshots" / COMMIT / "layer_20" / "width_16k" / "average_l0_71"
    folder.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    shapes = {"W_enc": (2, 16_384), "W_dec": (16_384, 2), "b_enc": (16_384,), "b_dec": (2,)}
    arrays = {n: np.ones(s, np.float32) for n, s in (shapes | {"threshold": (16_384,)}).items()}
    np.savez(folder / "params.npz", **arrays)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    sae_id = "layer_20/width_16k/average_l0_71"
    found = load_dictionary(release="gemma-scope-2b-pt-res", sae_id=sae_id)
    assert found.info == {
        "model_name": "google/gemma-2-2b",
        "hook_name": "blocks.20.hook_resid_post",
        "layer": "20",
        "licence": "cc-by-4.0",  # of the index
    }
    found.expect_site("language.20")
    by_name = load_dictionary("google/gemma-scope-2b-pt-res", file=sae_id)
    assert by_name.digest() == found.digest() and by_name.info == found.info
    page = home / "snapshots" / COMMIT / "README.md"
    page.write_text("---\nlicense: other\nlicense_name: theirs-1.0\n---\n")
    for lazy in (True, False):
        told = load_dictionary(release="gemma-scope-2b-pt-res", sae_id=sae_id, lazy=lazy)
        assert told.info["licence"] == "theirs-1.0"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "say either a path"),
        ({"path": "here", "release": "llama_scope_lxr_8x"}, "say either a path"),
        ({"path": "here", "sae_id": "l15r_8x"}, "goes with release="),
        ({"release": "llama_scope_lxr_8x", "file": "x"}, "goes with a path"),
        ({"release": "llama_scope_lxr_8x"}, "holds several: say sae_id= such as 'l0r_8x'"),
        ({"release": "llama_scope_lxr_8x", "sae_id": "l15m_8x"}, "has no sae_id 'l15m_8x'"),
        ({"release": "gemma-scope-2b-pt-res-canonical", "sae_id": "x"}, "has no sae_id 'x'"),
        ({"release": "llama_scope_lxr_9x"}, "not in the index .* near it are llama_scope_lxr_8x"),
        ({"release": "mntss-gemma-2-2b-2.5m-clt-as-per-layer"}, "is not in the index"),
    ],
)
def test_what_a_release_does_not_have_is_refused(options, message):
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(**options)


def test_the_page_shows_the_index_as_it_is():
    page = (ROOT / "docs" / "dictionaries.md").read_text("utf-8")
    rows = [vars(release) for release in releases().values()]
    assert SCRIPT["shown"](page, rows) == page


def test_the_index_is_what_its_script_makes_of_what_is_known():
    """As far as that is ours: of sae-lens's list the licences alone."""
    own = [row["repo"] for row in SCRIPT["KNOWN"]["rows"]]
    assert len(set(own)) == len(own)
    for row in SCRIPT["KNOWN"]["rows"]:
        release = releases()[row["repo"]]
        assert {key: getattr(release, key) for key in row} == row
    licences = {repo: told["licence"] for repo, told in SCRIPT["KNOWN"]["licences"].items()}
    assert set(licences) <= {release.repo for release in releases().values()}
    for release in releases().values():
        assert release.licence == licences.get(release.repo, ""), release.release


def test_every_licence_has_the_page_of_its_own_repository_as_its_source():
    for repo, told in SCRIPT["KNOWN"]["licences"].items():
        assert told["source"].startswith(f"https://huggingface.co/{repo}/"), repo
        assert re.fullmatch(r"[a-z0-9][a-z0-9.-]+", told["licence"]), repo


@pytest.mark.parametrize(
    ("release", "site", "width", "k"),
    [
        ("gemma-scope-2-4b-pt-mlp", "language.{}.mlp_out", "16k, 65k, 262k", ""),
        ("gemma-scope-2b-pt-att-canonical", "heads of language.{}", "16k, 65k", ""),
        ("llama_scope_lxr_32x", "language.{}", "131072", ""),
        ("llama_scope_lxa_8x", "language.{}.attention", "32768", ""),
        ("qwen-scope-3-8b-base-w64k-l50", "language.{}", "64k", "50"),
        ("gemma-2-9b-res-matryoshka-dc", "language.{}", "32k", ""),
        (f"{PRISMA}/sae-top_k-64-cls_only-layer_9-hook_mlp_out", "vision.9.mlp_out", "49152", "64"),
    ],
)  # fmt: skip
def test_names_of_releases_tell_site_and_sizes(release, site, width, k):
    found = releases()[release]
    assert (found.site, found.width, found.k) == (site, width, k)


def test_the_table_tells_what_is_known_of_a_family_and_what_is_not():
    row = {"release": "a", "family": "f", "format": "saelens", "read": "read"}
    rows = [row | {"licence": "mit", "host": "x, y"}, row | {"release": "b", "host": "z"}]
    last = SCRIPT["table"](rows).splitlines()[-1]
    assert last == "| f | 2: `a` | x, y; z |  |  |  | mit, not known | `saelens` | read |"


def test_a_pattern_is_taken_only_where_it_leads_from_every_name():
    find = SCRIPT["patterns"]
    assert find({"l1r": "L1R", "l12r": "L12R"}) == {"id": "l{}r", "file": "L{}R"}
    odd = {"l1r": "L1R", "l12r": "L13R"}
    assert find(odd) == {"id": "", "file": "", "exact": odd}


def test_the_marks_are_those_of_the_golden_archives():
    page = (ROOT / "docs" / "dictionaries.md").read_text("utf-8")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    for format in FORMATS.names():
        counted = bool(re.search(r"\(\d+( files)?\)", rows[format]))
        assert (format in SCRIPT["GOLDEN"]) == counted, format


@pytest.mark.parametrize(("own", "licence"), [("of-the-file", "of-the-file"), ("", "apache-2.0")])
def test_what_a_file_says_of_its_licence_goes_before_the_index(tmp_path, monkeypatch, own, licence):
    monkeypatch.chdir(tmp_path)
    name = "atawfeek/gemma-4-e4b-it-saes"  # a folder here, named like one of the index
    relu = Encoder(torch.eye(4), torch.zeros(4))
    info = {"licence": own} if own else {}
    Path(name).parent.mkdir()
    save_saelens(Dictionary(relu, torch.eye(4), torch.zeros(4), info), name)
    assert load_dictionary(name).info["licence"] == licence


def test_every_kind_of_dictionary_is_told_its_licence(tmp_path):
    rows, zeros = Rows(torch.eye(4)), torch.zeros(4)
    stored = StoredDictionary(rows, zeros, rows, zeros)
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    for kind in (stored, PairedDictionary(stored, stored), Transcoder(stored, "mlp_in", "mlp_out")):
        found = licensed(kind, tmp_path / "sae.pt", "")
        assert type(found) is type(kind) and found.info == {"licence": "mit"}
    assert found.places("language.1.mlp_out").reads == ("language.1.mlp_in",)
