"""The script that measures public dictionaries, on those of the zoo and on what fails."""

import json
import runpy
from pathlib import Path

from vlm_edit import Host, zoo
from vlm_edit.measuring import collect, measure

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = runpy.run_path(str(ROOT / "docs" / "experiments" / "dictionaries" / "measure_index.py"))
COUNT = 48


def test_a_row_is_what_the_library_says_and_a_failure_is_a_row_too(tmp_path):
    pairs = zoo.load_pairs().select(range(COUNT))
    index = SCRIPT["zoo_index"](tmp_path / "zoo")
    rows = [row for row in json.loads(index.read_text()) if "llava" not in row["host"]]
    rows += [{"release": "gone", "path": str(tmp_path / "no|where"), "host": "zoo:emoji-clip"}]
    hosts = SCRIPT["Hosts"]()
    joint, vision, gone = (SCRIPT["attempt"](row, hosts, pairs, 64) for row in rows)
    host, dictionary = Host.of(*zoo.load_host()), zoo.load_dictionary("joint")
    streams = collect(host, pairs, "joint", most=64, progress=False)
    check = dictionary.check(streams["text"], "text")
    assert joint[6] == f"{check.explained_variance:.3f}, {check.l0:.1f}, {check.dead:.1%}"
    classes = measure(host, pairs, dictionary, "joint", progress=False).dominance.classes()
    assert f"{len(classes['vision'])} vision" in joint[7]
    assert vision[5] and not vision[6] and vision[7] == "(one stream alone)"
    assert gone[0] == "gone" and "no dictionary at" in gone[-1] and "no\\|where" in gone[-1]
    page = SCRIPT["page"]([joint, vision, gone], "pairs", COUNT)
    assert "3 tried, 1 of them failed" in page
    cells = {line.replace("\\|", "").count("|") for line in page.splitlines() if "|" in line}
    assert cells == {len(SCRIPT["HEAD"]) + 1}


def test_the_index_that_ships_can_be_asked_for_a_word():
    rows = SCRIPT["entries"](None, "llama scope")
    assert {row["family"] for row in rows} == {"Llama Scope", "Llama Scope R1"}
