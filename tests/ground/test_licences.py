"""Licences are what pages state, looked for where they may stand; else they are not known."""

import pytest

from vlm_edit.ground.licences import licence_above, licence_in, licence_of

COMMIT = "c" * 40


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\nlicense: mit\n---\n# It", "mit"),
        ("---\r\nlicense: mit\r\n---\r\n", "mit"),
        ("\n---\ntags: [a]\nlicense: cc-by-4.0\n---", "cc-by-4.0"),
        ("---\nlicense: other\nlicense_name: gemma\n---\n", "gemma"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", "mit, apache-2.0"),
        ("---\nlicense: 'a\n\n  b'\n---\n", "a b"),
        ("---\nlicense: " + "x" * 200 + "\n---\n", "x" * 80),
        ("# license: mit", None),
        ("license: mit\n---\n", None),
        ("---\nlicense: mit\n", None),
        ("---\nlicence: mit\n---\n", None),
        ("---\nlicense: 5\n---\n", None),
        ("---\nlicense: ''\n---\n", None),
        ("---\nlicense: []\n---\n", None),
        ("---\n- license\n---\n", None),
        ("---\nlicense: [\n---\n", None),
        ("---\nlicense: !!python/object/apply:os.getcwd []\n---\n", None),
        ("", None),
    ],
)
def test_a_page_s_metadata_alone_tells_a_licence(tmp_path, text, licence):
    (tmp_path / "README.md").write_bytes(text.encode())
    assert licence_in(tmp_path) == licence
    assert licence_of(str(tmp_path)) == licence


def test_what_has_no_page_or_one_that_is_no_text_has_none(tmp_path):
    assert licence_in(tmp_path) is None and licence_in(tmp_path / "nowhere") is None
    (tmp_path / "README.md").write_bytes(b"\xff\xfe\x00" * 99)
    assert licence_in(tmp_path) is None
    (tmp_path / "README.md").write_text("---\na: " + "x" * 70_000 + "\nlicense: mit\n---\n")
    assert licence_in(tmp_path) is None


def test_a_repository_s_licence_is_that_of_its_page_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    home = tmp_path / "models--owner--name"
    deep = home / "snapshots" / COMMIT / "layers" / "3"
    deep.mkdir(parents=True)
    assert licence_of("owner/name") is None and licence_of("no name") is None
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    (home / "README.md").write_text("---\nlicense: of-no-repository\n---\n")
    assert licence_of("owner/name") is None and licence_above(deep) is None
    (home / "snapshots" / COMMIT / "README.md").write_text("---\nlicense: mit\n---\n")
    assert licence_of("owner/name") == "mit"
    assert (
        licence_above(deep) == licence_above(deep / "sae.pt") == licence_above(deep.parent) == "mit"
    )
    (deep / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert licence_above(deep) == "apache-2.0" and licence_above(deep.parent) == "mit"


def test_of_a_folder_here_no_other_folder_s_page_is_taken(tmp_path):
    folder = tmp_path / "snapshots" / "one" / "sae"
    folder.mkdir(parents=True)
    (folder.parent / "README.md").write_text("---\nlicense: mit\n---\n")
    assert licence_above(folder) is None
    (folder / "README.md").write_text("---\nlicense: gpl-3.0\n---\n")
    assert licence_above(folder / "weights.pt") == "gpl-3.0"
