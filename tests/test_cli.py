"""The command, as typed, on a model folder and pairs of one's own (here: the zoo's, on disk)."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open

from vlm_edit import load_patch, zoo
from vlm_edit.cli import main
from vlm_edit.dictionaries import save_saelens


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    host, processor = zoo.load_host()
    host.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pairs")
    zoo_pairs = zoo.load_pairs()
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "vendor"])
        for i in range(60):
            zoo_pairs.open(i).save(folder / f"{i}.png")
            writer.writerow([f"{i}.png", zoo_pairs.texts[i], zoo_pairs.columns["vendor"][i]])
    return str(folder / "pairs.csv")


@pytest.fixture(scope="module")
def dictionary(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("dictionary")
    save_saelens(replace(zoo.load_dictionary("joint"), info={}), folder)
    return str(folder)


def test_sites_lists_every_site_with_its_width(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sites", model]) == 0
    lines = capsys.readouterr().out.splitlines()
    joint = next(line for line in lines if line.startswith("joint"))
    assert joint.split() == ["joint", str(zoo.load_dictionary("joint").width), "image,", "text"]
    assert any(line.startswith("vision.0") for line in lines)


def test_measure_writes_a_row_per_feature_a_summary_and_a_page(
    model: str, pairs: str, dictionary: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["measure", model, pairs, "--dictionary", dictionary, "--out", str(out)]) == 0
    with (out / "features.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == zoo.load_dictionary("joint").n_features
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["pairs"] == 60
    assert sum(summary["classes"]["sd"].values()) == len(rows)
    assert (out / "index.html").stat().st_size > 10_000
    assert "vision-dominant" in capsys.readouterr().out


def test_measure_reports_an_unreadable_image_and_goes_on(
    model: str, pairs: str, dictionary: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    for i in range(10):
        source = Path(pairs).parent / f"{i}.png"
        (folder / f"{i}.png").write_bytes(b"garbage" if i == 4 else source.read_bytes())
        (folder / f"{i}.txt").write_text(f"caption {i}", encoding="utf-8")
    out = tmp_path / "run"
    code = main(["measure", model, str(folder), "--dictionary", dictionary, "--out", str(out)])
    assert code == 0
    printed = capsys.readouterr().out
    assert "1 pairs left out" in printed and "4.png" in printed
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["pairs"] == 9 and summary["skipped"][0]["pair"] == 4
    edit = ["edit", model, str(folder), "--dictionary", dictionary, "--features", "3"]
    assert main(edit) == 0
    printed = capsys.readouterr().out
    assert "9 pairs" in printed and "1 pairs left out" in printed and "4.png" in printed


def test_edit_by_class_shows_before_after_and_random_and_saves_a_patch(
    model: str, pairs: str, dictionary: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "patch.safetensors"
    arguments = ["edit", model, pairs, "--dictionary", dictionary, "--class", "vision"]
    assert main([*arguments, "--save", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "nothing" in printed and "ablate vision" in printed and "random" in printed
    patch = load_patch(file)
    with safe_open(file, "pt") as opened:
        assert "vlm_edit" in opened.metadata()
    assert patch.bindings[0].site == "joint"
    assert main(["edit", model, pairs, "--patch", str(file)]) == 0
    applied = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.startswith("ablate vision"))
    again = next(line for line in applied.splitlines() if line.startswith("the patch"))
    assert row.split()[-1] == again.split()[-1]


def test_edit_of_raw_neurons_moves_the_embeddings(
    model: str, pairs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["edit", model, pairs, "--dictionary", "neurons", "--features", "0,1,2"]
    assert main([*arguments, "--rule", "steer", "--amount", "5"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert next(r for r in rows if r.startswith("nothing")).endswith("0.0%")
    assert not next(r for r in rows if r.startswith("steer 3 features")).endswith(" 0.0%")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sites", "no-such-model"], "no model at 'no-such-model'"),
        (["measure", "MODEL", "no-such.csv", "--dictionary", "DICT"], "no pairs at 'no-such.csv'"),
        (["measure", "MODEL", "PAIRS", "--dictionary", "nowhere"], "no dictionary at 'nowhere'"),
        (
            ["measure", "MODEL", "PAIRS", "--dictionary", "DICT", "--site", "attic"],
            "has no site 'attic'; its sites are joint, vision.0",
        ),
        (
            [
                "edit",
                "MODEL",
                "PAIRS",
                "--dictionary",
                "DICT",
                "--site",
                "text.0",
                "--features",
                "1",
            ],
            "the dictionary is 192 wide, site 'text.0' of CLIPModel is 160",
        ),
        (["measure", "MODEL", "PAIRS", "--dictionary", "neurons", "--site", "text.0"], "only"),
        (["edit", "MODEL", "PAIRS", "--features", "1"], "--dictionary"),
        (["edit", "MODEL", "PAIRS", "--dictionary", "DICT", "--features", "one"], "numbers"),
        (["edit", "MODEL", "PAIRS", "--dictionary", "DICT", "--features", "99999"], "99999"),
        (
            [
                "edit",
                "MODEL",
                "PAIRS",
                "--dictionary",
                "DICT",
                "--features",
                "1",
                "--rule",
                "steer",
            ],
            "--rule steer takes --amount",
        ),
        (
            ["edit", "MODEL", "PAIRS", "--dictionary", "DICT", "--features", "1", "--value", "1"],
            "--rule ablate takes none",
        ),
        (["edit", "MODEL", "PAIRS", "--patch", "nowhere.safetensors"], "no patch at"),
        (
            ["edit", "MODEL", "PAIRS", "--patch", "p.safetensors", "--tokens", "image"],
            "leave --tokens out",
        ),
        (["edit", "MODEL", "PAIRS", "--dictionary", "DICT", "--features", ""], "numbers"),
        (["measure", "MODEL", "PAIRS", "--dictionary", "DICT", "--out", "PAIRS"], "exists"),
        (
            ["edit", "MODEL", "PAIRS", "--dictionary=DICT", "--features=1", "--save=no/where.s"],
            "--save no/where.s: its folder does not exist",
        ),
    ],
)
def test_what_the_user_can_mend_is_one_line_on_standard_error(
    arguments: list[str],
    message: str,
    model: str,
    pairs: str,
    dictionary: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = {"MODEL": model, "PAIRS": pairs, "DICT": dictionary}
    typed = [known.get(a, a).replace("=DICT", f"={dictionary}") for a in arguments]
    assert main(typed) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("vlm-edit: ") and message in printed.err
    assert "Traceback" not in printed.err


def test_a_model_of_an_unknown_type_says_how_to_write_an_adapter(
    tmp_path: Path, pairs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    BertModel(config).save_pretrained(tmp_path)
    zoo.load_host()[1].save_pretrained(tmp_path)
    assert main(["measure", str(tmp_path), pairs, "--dictionary", "neurons"]) == 2
    assert "docs/writing-an-adapter.md" in capsys.readouterr().err


def test_a_folder_that_is_no_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}', encoding="utf-8")
    assert main(["sites", str(tmp_path)]) == 2
    assert "transformers" in capsys.readouterr().err


def test_weights_that_are_cut_off_are_one_line(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in Path(model).iterdir():
        data = file.read_bytes()
        cut = data[: len(data) // 2] if file.suffix == ".safetensors" else data
        (tmp_path / file.name).write_bytes(cut)
    assert main(["sites", str(tmp_path)]) == 2
    assert "transformers cannot load it" in capsys.readouterr().err


def test_the_command_works_in_a_process_where_nnsight_gave_every_object_a_save(model, pairs):
    code = "import sys, nnsight; from vlm_edit.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["edit", model, pairs, "--patch", "nowhere.safetensors"]
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2, run.stderr
    assert "no patch at 'nowhere.safetensors'" in run.stderr
