"""Sites: names, widths, streams, dead layers, and errors that name what was tried."""

import importlib
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vlm_edit import Adapter, SiteRule, TapRule, VlmEditError, find_sites
from vlm_edit.sites import find_adapter, find_site, unwrap

sites_room = importlib.import_module("vlm_edit.sites")


class Host(nn.Module):
    """A host without an adapter: blocks 0 and 2 have an ``mlp``, block 1 has none."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="martian", inner=SimpleNamespace(size=8))
        self.blocks = nn.ModuleList(nn.Module() for _ in range(3))
        for i in (0, 2):
            self.blocks[i].mlp = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def adapter(*paths: str, name: str = "layer.{i}", width: str = "inner.size") -> Adapter:
    return Adapter((SiteRule(name, (TapRule(paths, "image"),), (width,)),))


def test_a_clip_has_a_joint_site_and_the_layers_of_both_towers(clip):
    found = find_sites(clip)
    towers = [f"{tower}.{i}" for tower in ("vision", "text") for i in range(3)]
    assert list(found) == ["joint", *towers]
    assert [found[name].width for name in ("joint", "vision.1", "text.2")] == [12, 24, 16]
    assert found["joint"].streams == ("image", "text")
    assert found["vision.0"].streams == ("image",)
    assert found["text.0"].taps[0].module is clip.text_model.encoder.layers[0]
    assert not any(s.dead for s in found.values())


def test_language_layers_of_a_llava_hold_both_streams(llava):
    found = find_sites(llava)
    assert found["language.0"].streams == ("image", "text")
    assert found["projector"].width == found["language.2"].width == 32
    assert found["language.1"].taps[0].path == "model.language_model.layers.1"


@pytest.mark.parametrize(
    ("layer", "dead"),
    [(-2, [2]), (-1, []), ([-3, -2], [2]), (1, [1, 2]), (0, [0, 1, 2])],
)
def test_layers_after_the_last_one_the_host_reads_are_dead(llava, layer, dead):
    llava.config.vision_feature_layer = layer
    found = find_sites(llava)
    assert [i for i in range(3) if found[f"vision.{i}"].dead] == dead
    for i in dead:
        assert f"vision_feature_layer={layer}" in found[f"vision.{i}"].dead
        assert "vision.-1" not in found[f"vision.{i}"].dead


def test_an_unknown_site_is_refused_with_the_list_of_sites(clip):
    with pytest.raises(
        VlmEditError,
        match=r"CLIPModel has no site 'vision.3'; its sites are joint, vision.0 ... vision.2, ",
    ):
        find_site(clip, "vision.3")


def test_an_unknown_type_of_host_is_refused_with_the_way_to_write_an_adapter():
    with pytest.raises(VlmEditError, match=r"'martian'; known: .*clip.*docs/writing-an-adapter"):
        find_sites(Host())
    with pytest.raises(VlmEditError, match=r"no adapter for Linear \(config.model_type is None"):
        find_adapter(nn.Linear(2, 2))


def test_candidate_paths_are_tried_in_order(clip):
    rule = TapRule(("nowhere", "visual_projection", "text_projection"), "image")
    found = find_sites(clip, Adapter((SiteRule("joint", (rule,), ("projection_dim",)),)))
    assert found["joint"].taps[0].module is clip.visual_projection


def test_a_candidate_whose_layers_lack_the_module_gives_way_to_the_next():
    host = Host()
    found = find_sites(host, adapter("blocks.{i}.ffn", "blocks.{i}.mlp"))
    assert found["layer.0"].taps[0].path == "blocks.0.mlp"


def test_a_layer_keeps_its_number_where_another_lacks_the_module():
    found = find_sites(Host(), adapter("blocks.{i}.mlp"))
    assert {name: s.taps[0].path for name, s in found.items()} == {
        "layer.0": "blocks.0.mlp",
        "layer.2": "blocks.2.mlp",
    }


@pytest.mark.parametrize("paths", [("towers.{i}", "blocks.{i}.attention")])
def test_a_layout_that_no_path_fits_is_refused_with_the_paths_tried(paths):
    with pytest.raises(VlmEditError, match=r"no module at towers.{i} or blocks.{i}.attention"):
        find_sites(Host(), adapter(*paths))


def test_a_width_that_is_not_in_the_config_is_refused_with_the_attributes_tried():
    with pytest.raises(VlmEditError, match=r"not in the config under hidden_size; name the attr"):
        find_sites(Host(), adapter("blocks.{i}", width="hidden_size"))


def test_wrappers_are_seen_through(clip):
    assert unwrap(nn.DataParallel(clip)) is clip
    assert unwrap(torch.compile(clip)) is clip
    assert find_site(torch.compile(clip), "joint").taps[0].module is clip.visual_projection


def test_a_host_inside_peft_is_seen_through(clip):
    class PeftModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.peft_config = {}
            self.base = clip

        def get_base_model(self) -> nn.Module:
            return self.base

    assert unwrap(PeftModel()) is clip


def points(*values: str) -> list[EntryPoint]:
    return [EntryPoint("clip", value, "vlm_edit.adapters") for value in values]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (points("vlm_edit_adapters.clip:adapter", "other:adapter"), "two adapters.*'clip'"),
        (points("no_such_module:adapter"), "cannot be imported.*no_such_module"),
        (points("vlm_edit_adapters.clip:no_such_name"), "cannot be imported"),
        (points("vlm_edit.sites:Adapter"), "not an Adapter"),
    ],
)
def test_a_registration_that_cannot_serve_says_why(clip, monkeypatch, found, message):
    monkeypatch.setattr(sites_room, "entry_points", lambda **_: found)
    sites_room._registered.cache_clear()
    try:
        with pytest.raises(VlmEditError, match=message):
            find_adapter(clip)
    finally:
        sites_room._registered.cache_clear()


def test_a_package_on_the_path_twice_registers_once(clip, monkeypatch):
    twice = points("vlm_edit_adapters.clip:adapter", "vlm_edit_adapters.clip:adapter")
    monkeypatch.setattr(sites_room, "entry_points", lambda **_: twice)
    sites_room._registered.cache_clear()
    try:
        assert list(find_sites(clip))[0] == "joint"
    finally:
        sites_room._registered.cache_clear()
