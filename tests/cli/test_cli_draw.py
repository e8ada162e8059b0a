"""``vlm-edit draw`` on the bundled pipeline."""

from dataclasses import replace

import pytest
from PIL import Image

from vlm_edit import Dictionary, Host, VlmEditError, measure, zoo
from vlm_edit.cli import main
from vlm_edit.cli.kept import pictures

pytest.importorskip("diffusers")

from vlm_edit.cli.pipeline import read
from vlm_edit.zoo.unclip import UnclipPipeline


def run(*words):
    return main(["draw", "--steps", "2", *map(str, words)])


def test_it_draws_a_column_per_strength_and_a_row_per_reference(tmp_path, capsys):
    reference = tmp_path / "red.png"
    Image.new("RGB", (64, 64), "red").save(reference)
    out = tmp_path / "x.png"
    words = ["a picture of dog face", "--reference", reference, "--reference", "a picture of cat"]
    assert run(*words, "--class", "whole", "--strength", "0,1", "--out", out) == 0
    told = capsys.readouterr().out
    assert told.count("whole embedding") == 2
    assert str(out) in told
    with Image.open(out) as page:
        assert page.height > 2 * 96
        assert page.width > 3 * 96
    plain, taken = tile(out, 0, 1), tile(out, 0, 2)
    assert plain == tile(out, 1, 1)
    assert plain != taken != tile(out, 1, 2)


@pytest.mark.slow
def test_classes_are_measured_and_take_different_things(tmp_path, capsys):
    out = tmp_path / "x.png"
    words = ["a picture of dog face", "--reference", "a picture of cat face", "--strength", "1"]
    assert run(*words, "--class", "cross", "--class", "vision", "--out", out) == 0
    told = capsys.readouterr().out
    assert "cross (5)" in told
    assert "vision (122)" in told
    assert tile(out, 0, 1) != tile(out, 1, 1)


def test_own_features_are_scaled_or_kept_without_a_reference(tmp_path, capsys):
    pictures = []
    for rule, idle in (("scale", 1), ("keep", 0)):
        out = tmp_path / f"{rule}.png"
        words = ["a picture of dog face", "--rule", rule, "--class", "cross", "--cuts", "fixed"]
        words += ["--out", out]
        assert run(*words, "--run", measured(tmp_path)) == 0
        assert "cross (" in capsys.readouterr().out
        pictures.append([tile(out, 0, column) for column in range(3)])
        assert len(set(pictures[-1])) == 3
        pictures[-1].insert(0, pictures[-1][idle])
    assert pictures[0][0] == pictures[1][0]  # the prompt, drawn as it is
    assert pictures[0][1] != pictures[1][3]


def test_the_page_of_a_run_shows_what_was_drawn_with_it(tmp_path, capsys):
    folder, out = measured(tmp_path), tmp_path / "x.png"
    words = ["a <b>dog</b>", "--rule", "keep", "--class", "vision", "--strength", "1"]
    assert run(*words, "--run", folder, "--out", out) == 0
    assert run(*words, "--run", folder, "--out", out, "--overwrite") == 0
    kept = pictures(folder)
    assert [p.title for p in kept] == ["keep: a <b>dog</b>"] * 2
    with Image.open(out) as drawn:
        assert kept[1].image.tobytes() == drawn.convert("RGB").tobytes()
    assert "vision (" in kept[0].told
    assert main(["report", str(folder), "--page", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text("utf-8")
    assert page.count("keep: a &lt;b&gt;dog&lt;/b&gt;</h3>") == 2
    assert kept[0].address in page
    capsys.readouterr()
    damaged = folder / "drawings" / "002.png"
    damaged.write_bytes(damaged.read_bytes()[:300])
    assert main(["report", str(folder)]) == 2
    assert "002.png is damaged: delete it, or draw again" in capsys.readouterr().err
    Image.new("RGB", (4, 4)).save(damaged)
    assert main(["report", str(folder)]) == 2
    assert "002.png is damaged" in capsys.readouterr().err


def test_a_run_of_something_else_is_refused_before_anything_is_drawn(tmp_path, capsys):
    words = ["a dog", "--reference", "a cat", "--class", "whole", "--run"]
    assert run(*words, tmp_path) == 2
    assert "no measurement at" in capsys.readouterr().err
    folder = measured(tmp_path, dictionary=Dictionary.identity(192))
    assert run(*words, folder, "--out", tmp_path / "x.png") == 2
    assert "is a run with another dictionary" in capsys.readouterr().err
    assert run(*words, measured(tmp_path, site="language.3"), "--out", tmp_path / "x.png") == 2
    assert "measured language.3, which CLIPModel lacks" in capsys.readouterr().err
    assert run(*words, measured(tmp_path), "--site", "text.1", "--out", tmp_path / "x.png") == 2
    assert "measured joint: draw with --site joint" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


def measured(tmp_path, dictionary=None, site="joint"):
    host, processor = zoo.load_host()
    pairs = zoo.load_pairs().select(range(64))
    found = measure(
        Host.of(host, processor), pairs, dictionary or zoo.load_dictionary("joint"), progress=False
    )
    told = {**found.provenance, "pairs": {"name": "zoo:pairs"}}
    replace(found, provenance=told, site=site).save(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "name it with --reference"),
        (["--rule", "keep", "--reference", "a cat"], "leave --reference out"),
        (["--rule", "scale", "--class", "whole"], "a baseline of --rule blend"),
        (["--reference", "missing.png"], "no image could be read"),
        (
            ["--reference", "a cat", "--strength", "0,much"],
            "from -8 to 8, such as 0,0.5,1, got 'mu",
        ),
        (["--reference", "a cat", "--strength", "nan"], "got 'nan'"),
        (["--rule", "scale", "--strength=-9,1"], "got '-9'"),
        (["--reference", "a cat", "--out", "missing/x.png"], "does not exist"),
        (["--reference", "a cat", "--out", "x.txt"], "name a picture, such as draw.png"),
        (["--reference", "a cat", "--out", ""], "name a picture, such as draw.png"),
        (["--reference", "a cat", "--seed", "9" * 23], "--seed 9999"),
        (["--reference", "a cat", "--steps", "0"], "--steps 0: it must be at least 1"),
        (["--reference", "a cat", "--pipeline", "zoo:other"], "zoo:emoji-unclip"),
        (["--reference", "a cat", "--pipeline", "missing"], "model_index.json"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(words, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("a dog", *words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert says in lines[-1]
    assert not list(tmp_path.iterdir())


def test_a_picture_is_not_drawn_over_what_it_is_drawn_from(tmp_path, capsys):
    source = tmp_path / "red.png"
    Image.new("RGB", (64, 64), "red").save(source)
    before = source.read_bytes()
    assert run(source, "--rule", "keep", "--out", source) == 2
    assert "is what is drawn from" in capsys.readouterr().err
    assert source.read_bytes() == before
    (tmp_path / "folder.png").mkdir()
    assert run(source, "--rule", "keep", "--out", tmp_path / "folder.png") == 2
    assert "is a folder" in capsys.readouterr().err


def test_a_file_is_an_image_whatever_it_is_called_and_words_are_no_file(tmp_path):
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.save(tmp_path / "noending", "PNG")
    assert read(str(tmp_path / "noending")).getpixel((0, 0)) == (255, 255, 255)
    assert read("a cat") == "a cat"
    assert read("a" * 5000) == "a" * 5000
    assert read("a \udce9") == "a ?"
    (tmp_path / "words").write_text("no image")
    with pytest.raises(VlmEditError, match="must not be named like a file"):
        read(str(tmp_path / "words"))


def test_a_site_that_the_prompt_does_not_pass_is_refused_and_nothing_is_written(tmp_path, capsys):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    words = ["a dog", "--reference", tmp_path / "red.png", "--class", "whole"]
    out = tmp_path / "x.png"
    assert run(*words, "--site", "vision.1", "--out", out) == 2
    assert "--site vision.1 was not passed" in capsys.readouterr().err
    assert not out.exists()


def test_another_pipeline_is_named_before_it_is_loaded(tmp_path, capsys):
    words = ["a dog", "--rule", "keep", "--pipeline", tmp_path]
    for told, says in (
        ('{"_class_name": "FluxPipeline"}', "is a pipeline of class FluxPipeline"),
        ("{}", "of class None"),
        ("[]", "is damaged"),
        ("{", "is damaged"),
    ):
        (tmp_path / "model_index.json").write_text(told)
        assert run(*words) == 2
        assert says in capsys.readouterr().err
    UnclipPipeline(zoo.load_unclip().unet, zoo.load_unclip().scheduler).save_pretrained(tmp_path)
    assert run(*words) == 2
    assert "holds no CLIP" in capsys.readouterr().err


def tile(path, row, column):
    """Bytes of a drawing of the picture."""
    with Image.open(path) as page:
        x, y = 8 + 144 + column * 102, 8 + 36 + row * 102
        return page.convert("RGB").crop((x, y, x + 96, y + 96)).tobytes()
