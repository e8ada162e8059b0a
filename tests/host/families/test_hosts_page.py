"""docs/hosts.md says what the hosts of the tests say of themselves."""

from importlib.metadata import entry_points

import pytest
import transformers
from any_hosts import TYPES
from hosts_page import PAGE, describe, expect_section
from lined_up_hosts import BRIDGETOWER, HOSTS
from tiny_hosts import FAMILIES

from vlm_edit.host import ENTRY_POINTS

NOTES = {"blip2": " with OPT", "blip2_t5": " with T5"}


@pytest.mark.skipif(
    transformers.__version__.startswith("4."), reason="the page has the paths of transformers 5"
)
def test_the_page_has_every_host_that_is_tested_with_its_sites() -> None:
    expect_section(
        "hosts", describe((f.make(), NOTES.get(name, "")) for name, f in FAMILIES.items())
    )


def test_the_page_leaves_no_section_empty() -> None:
    text = PAGE.read_text("utf-8")
    for mark in ("hosts", "openclip", "pipelines"):
        assert len(text.split(f"<!-- {mark}: begin -->")[1].split("<!--")[0]) > 200


def test_every_adapter_that_is_shipped_is_tested_on_a_host_of_its_own() -> None:
    ours = [p for p in entry_points(group=ENTRY_POINTS) if p.value.startswith("vlm_edit_adapters.")]
    tested = {family.make().config.model_type for family in FAMILIES.values()}
    tested |= {p.name for p in ours if p.name in TYPES}  # by test_all_types.py
    lined_up = [h.make() for h in {**HOSTS, **BRIDGETOWER}.values()]
    tested |= {model.config.model_type for model in lined_up}
    classes = {f"transformers.{type(model).__name__}" for model in lined_up}
    tested |= {p.name for p in ours if p.name in classes}  # of a class whose family has another
    elsewhere = {"open_clip.CLIP", "open_clip.CustomTextCLIP"}  # by test_open_clip.py
    pipelines = {p.name for p in ours if p.value.startswith("vlm_edit_adapters.diffusers:")}
    assert {point.name for point in ours} == tested | elsewhere | pipelines  # test_pipelines.py
