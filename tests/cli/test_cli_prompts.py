"""What a model is asked is the user's to say, and is said back."""

import pytest

from vlm_edit import zoo
from vlm_edit.cli import main
from vlm_edit.measuring import load_measurement

DICTIONARY = ("--dictionary", "zoo:language.3", "--site", "language.3")


@pytest.fixture(scope="module")
def few_pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, pairs = tmp_path_factory.mktemp("pairs"), zoo.load_pairs()
    rows = ["image,caption"]
    for i in range(6):
        pairs.open(i).save(folder / f"{i}.png")
        rows.append(f"{i}.png,a thing number {i}")
    (folder / "pairs.csv").write_text("\n".join(rows))
    return str(folder / "pairs.csv")


def measured(capsys, *words: str) -> tuple[int, str]:
    code = main([*words])
    return code, capsys.readouterr().err


def test_a_template_is_asked_recorded_and_said(tmp_path, capsys, few_pairs) -> None:
    out = tmp_path / "run"
    code, said = measured(
        *(capsys, "measure", "zoo:emoji-llava", few_pairs, *DICTIONARY),
        *("--out", str(out), "--prompt", "{text}\\n{image}"),
    )
    assert code == 0, said
    assert "each pair is asked as '{text}\\n<image>'" in said
    provenance = load_measurement(out).provenance
    assert provenance["settings"]["prompt"] == "{text}\n<image>"
    assert "<image>" in provenance["first prompt"]
    code, said = measured(
        *(capsys, "measure", "zoo:emoji-llava", few_pairs, *DICTIONARY),
        *("--out", str(tmp_path / "other")),
    )
    assert "asked as '<image>\\n{text}'" in said


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("chat", "prompt 'chat': the host's processor has no chat template"),
        ("{image} only", "hold {text} once"),
    ],
)
def test_a_prompt_that_cannot_be_asked_is_refused_before_anything_runs(
    prompt, says, tmp_path, capsys, few_pairs
) -> None:
    out = tmp_path / "run"
    code, said = measured(
        *(capsys, "measure", "zoo:emoji-llava", few_pairs, *DICTIONARY),
        *("--out", str(out), "--prompt", prompt),
    )
    assert code == 2 and says in said
    assert not out.exists()
