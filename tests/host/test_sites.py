"""Sites: names, widths, streams, dead layers, and errors that name what was tried."""

import importlib
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vlm_edit import Adapter, Host, VlmEditError, find_sites
from vlm_edit.host import SiteRule, TapRule, find_adapter, placeholder_ids, unwrap

registry = importlib.import_module("vlm_edit.host.adapters")


class Blocks(nn.Module):
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
        Host.of(clip).site("vision.3")


def test_an_unknown_type_of_host_is_refused_with_the_way_to_write_an_adapter():
    with pytest.raises(
        VlmEditError,
        match=r"'martian', the class 'test_sites.Blocks'; known: .*clip.*docs/writing-an-adapter",
    ):
        find_sites(Blocks())
    with pytest.raises(
        VlmEditError,
        match=r"no adapter for Linear \(config.model_type is None, the class 'torch.Linear'",
    ):
        find_adapter(nn.Linear(2, 2))


def test_candidate_paths_are_tried_in_order(clip):
    rule = TapRule(("nowhere", "visual_projection", "text_projection"), "image")
    found = Host.of(clip, adapter=Adapter((SiteRule("joint", (rule,), ("projection_dim",)),))).sites
    assert found["joint"].taps[0].module is clip.visual_projection


def test_a_candidate_whose_layers_lack_the_module_gives_way_to_the_next():
    host = Blocks()
    found = Host.of(host, adapter=adapter("blocks.{i}.ffn", "blocks.{i}.mlp")).sites
    assert found["layer.0"].taps[0].path == "blocks.0.mlp"


def test_a_layer_keeps_its_number_where_another_lacks_the_module():
    found = Host.of(Blocks(), adapter=adapter("blocks.{i}.mlp")).sites
    assert {name: s.taps[0].path for name, s in found.items()} == {
        "layer.0": "blocks.0.mlp",
        "layer.2": "blocks.2.mlp",
    }


@pytest.mark.parametrize("paths", [("towers.{i}", "blocks.{i}.attention")])
def test_a_layout_that_no_path_fits_is_refused_with_the_paths_tried(paths):
    with pytest.raises(VlmEditError, match=r"no module at towers.{i} or blocks.{i}.attention"):
        _ = Host.of(Blocks(), adapter=adapter(*paths)).sites


def test_a_width_that_is_not_in_the_config_is_refused_with_the_attributes_tried():
    with pytest.raises(
        VlmEditError, match=r"not in the config under hidden_size, nor on the model; name the attr"
    ):
        _ = Host.of(Blocks(), adapter=adapter("blocks.{i}", width="hidden_size")).sites


def test_wrappers_are_seen_through(clip):
    assert unwrap(nn.DataParallel(clip)) is clip
    assert unwrap(torch.compile(clip)) is clip
    assert Host.of(torch.compile(clip)).site("joint").taps[0].module is clip.visual_projection


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
        (points("vlm_edit.host:Adapter"), "not an Adapter"),
    ],
)
def test_a_registration_that_cannot_serve_says_why(clip, monkeypatch, found, message):
    monkeypatch.setattr(registry, "entry_points", lambda **_: found)
    registry._registered.cache_clear()
    try:
        with pytest.raises(VlmEditError, match=message):
            find_adapter(clip)
    finally:
        registry._registered.cache_clear()


def test_a_package_on_the_path_twice_registers_once(clip, monkeypatch):
    twice = points("vlm_edit_adapters.clip:adapter", "vlm_edit_adapters.clip:adapter")
    monkeypatch.setattr(registry, "entry_points", lambda **_: twice)
    registry._registered.cache_clear()
    try:
        assert list(find_sites(clip))[0] == "joint"
    finally:
        registry._registered.cache_clear()


class Stages(nn.Module):
    """Layers in stages of different widths, a method that embeds text, and no config."""

    def __init__(self) -> None:
        super().__init__()
        self.widths = [4, 6]
        self.stages = nn.ModuleList(
            nn.ModuleList(nn.Linear(width, width) for _ in range(n))
            for n, width in zip((1, 2), self.widths, strict=True)
        )
        self.text = nn.Linear(3, 5)

    def encode_text(self, x: torch.Tensor) -> torch.Tensor:
        return self.text(x)


def test_layers_in_stages_have_two_numbers_and_a_width_per_stage():
    rule = SiteRule("vision.{i}.{j}", (TapRule(("stages.{i}.{j}",), "image", axis=1),), ("widths",))
    host = Stages()
    found = Host.of(host, adapter=Adapter((rule,))).sites
    assert {name: site.width for name, site in found.items()} == {
        "vision.0.0": 4,
        "vision.1.0": 6,
        "vision.1.1": 6,
    }
    assert found["vision.1.1"].taps[0].module is host.stages[1][1]
    assert found["vision.1.1"].taps[0].axis == 1


@pytest.mark.parametrize(
    ("path", "parent", "method"),
    [("encode_text()", "", "encode_text"), ("text.forward()", "text", "forward")],
)
def test_a_path_with_parentheses_names_a_method(path, parent, method):
    host = Stages()
    rule = SiteRule("joint", (TapRule((path,), "text"),), ("text.out_features",))
    site = Host.of(host, adapter=Adapter((rule,))).site("joint")
    assert site.width == 5
    (tap,) = site.taps
    assert (tap.path, tap.method) == (path, method)
    assert tap.module is host.get_submodule(parent)


@pytest.mark.parametrize("path", ["encode_image()", "text.bias()", "nowhere.forward()"])
def test_a_method_that_the_host_lacks_is_refused(path):
    rule = SiteRule("joint", (TapRule((path,), "text"),), (5,))
    with pytest.raises(VlmEditError, match=r"no module at " + path.replace("()", r"\(\)")):
        _ = Host.of(Stages(), adapter=Adapter((rule,))).sites


def test_an_optional_site_may_be_missing_but_not_half_declared():
    absent, present = TapRule(("nowhere",), "image"), TapRule(("text",), "text")
    widthless = SiteRule("joint", (present,), ("size",), optional=True)
    assert (
        Host.of(
            Stages(), adapter=Adapter((SiteRule("joint", (absent,), (5,), optional=True),))
        ).sites
        == {}
    )
    with pytest.raises(VlmEditError, match="its width is not in the config under size"):
        _ = Host.of(Stages(), adapter=Adapter((widthless,))).sites


def test_an_optional_site_is_passed_over_where_one_of_its_modules_is_missing():
    taps = (TapRule(("nowhere",), "image"), TapRule(("text",), "text"))
    assert (
        Host.of(Stages(), adapter=Adapter((SiteRule("joint", taps, (5,), optional=True),))).sites
        == {}
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SiteRule("a.{i}", (TapRule(("b",), "image"),), (1,)), r"'a.{i}' lies at 'b'"),
        (lambda: SiteRule("a", (TapRule(("b.{i}",), "image"),), (1,)), r"'a' lies at 'b.{i}'"),
        (
            lambda: SiteRule("a", (TapRule(("b",), "image"),), (1,), consumed="layer"),
            r"consumed='layer', an index into layers",
        ),
        (lambda: TapRule("b", "image"), r"a tuple of candidates, not 'b'"),
        (lambda: TapRule((), "image"), r"a tuple of candidates, not \(\)"),
        (lambda: TapRule(("b",), "sound"), r"no stream 'sound' \(at b\): it is one of image, text"),
        (lambda: Adapter.of({"a": ("b", "sound", 3)}), r"no stream 'sound'"),
        (lambda: Adapter.of({"a": ("b", "image")}), r"'a': \('b', 'image'\) is not a place"),
        (lambda: Adapter.of({"a": ["b"]}), r"'a': 'b' is not a place"),
        (lambda: Adapter.of({"a": []}), r"'a': it has no place"),
        (
            lambda: Adapter.of({"a": [("b", "image", 3), ("c", "text", 4)]}),
            r"'a': its modules are 3 and 4 wide",
        ),
    ],
)
def test_a_declaration_that_fits_no_host_is_refused_where_it_is_written(make, message):
    with pytest.raises(VlmEditError, match=message):
        make()


def test_an_adapter_of_ones_own_paths_serves_any_module():
    own = Adapter.of(
        {
            "vision.{i}.{j}": ("stages.{i}.{j}", "image", "widths", 1),
            "joint": [("text", "text", 5), ("stages.1.1", "image", 5)],
        }
    )
    found = Host.of(Stages(), adapter=own).sites
    assert [(name, site.width) for name, site in found.items()] == [
        *(("vision.0.0", 4), ("vision.1.0", 6), ("vision.1.1", 6), ("joint", 5)),
    ]
    assert found["vision.0.0"].taps[0].axis == 1
    assert found["joint"].streams == ("image", "text")


def test_a_host_that_is_a_list_of_layers_has_them_at_no_path():
    found = Host.of(
        nn.Sequential(nn.Linear(2, 2)), adapter=Adapter.of({"layer.{i}": ("{i}", "text", 2)})
    ).sites
    assert found["layer.0"].taps[0].path == "0"


def register(monkeypatch, **adapters: str) -> None:
    found = [
        EntryPoint(name.replace("__", "."), value, registry.ENTRY_POINTS)
        for name, value in adapters.items()
    ]
    monkeypatch.setattr(registry, "entry_points", lambda **_: found)
    monkeypatch.setattr(registry, "_registered", registry._registered.__wrapped__)


STAGES = Adapter.of({"joint": ("text", "text", 5)})


def test_a_host_without_a_model_type_is_found_by_its_class_or_a_base_of_it(monkeypatch):
    register(monkeypatch, test_sites__Stages="test_sites:STAGES")

    class Derived(Stages):
        pass

    assert find_adapter(Stages()) is find_adapter(Derived()) is STAGES
    with pytest.raises(VlmEditError, match=r"the class 'test_sites.Blocks'"):
        find_adapter(Blocks())


class Kin(Stages):
    """A class that a table of its base names."""


TABLE = {"test_sites.Stages": STAGES, "test_sites.Kin": Adapter.of({"kin": ("text", "text", 5)})}
HALF_A_TABLE = {"test_sites.Kin": STAGES}
FALSE_TABLE = {"test_sites.Stages": STAGES, "test_sites.Kin": "STAGES"}


def test_a_table_of_a_base_serves_each_class_by_the_nearest_it_names(monkeypatch):
    register(monkeypatch, test_sites__Stages="test_sites:TABLE")
    nearest = type("Nearest", (Kin,), {})
    other = type("Other", (Stages,), {})
    assert find_adapter(Kin()) is find_adapter(nearest()) is TABLE["test_sites.Kin"]
    assert find_adapter(Stages()) is find_adapter(other()) is STAGES


def test_what_is_registered_for_a_class_goes_before_a_table_of_its_base(monkeypatch):
    register(
        monkeypatch, test_sites__Stages="test_sites:TABLE", test_sites__Kin="test_sites:STAGES"
    )
    assert find_adapter(Kin()) is STAGES


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("HALF_A_TABLE", "a table without 'test_sites.Stages', which.*: add it"),
        ("FALSE_TABLE", "gives a str for 'test_sites.Kin', not an Adapter"),
    ],
)
def test_a_table_that_cannot_serve_says_why(monkeypatch, table, message):
    register(monkeypatch, test_sites__Stages=f"test_sites:{table}")
    with pytest.raises(VlmEditError, match=message):
        find_adapter(Stages())


def test_the_model_type_goes_before_the_class(monkeypatch, clip):
    register(
        monkeypatch,
        clip="vlm_edit_adapters.clip:adapter",
        transformers__CLIPModel="test_sites:STAGES",
    )
    assert find_adapter(clip).sites[0].name == "joint"
    assert find_adapter(clip) is not STAGES


def test_the_placeholder_is_a_number_or_an_attribute_of_the_config_or_of_the_host(llava):
    host = Stages()
    host.placeholder = 7
    assert placeholder_ids(llava, find_adapter(llava)) == {"image": (llava.config.image_token_id,)}
    assert placeholder_ids(host, Adapter((), image_token="placeholder")) == {"image": (7,)}
    assert placeholder_ids(host, Adapter((), image_token=0)) == {"image": (0,)}
    several = Adapter((), image_token=("placeholder", 9, "video"))
    assert placeholder_ids(host, several) == {"image": (7, 9)}
    assert placeholder_ids(host, Adapter(())) == {}
    both = Adapter((), image_token=7, video_token=8, audio_token="placeholder_of_sounds")
    assert placeholder_ids(host, both) == {"image": (7,), "video": (8,)}
    with pytest.raises(
        VlmEditError, match=r"the config of Stages has no 'image_id', nor has Stages"
    ):
        placeholder_ids(host, Adapter((), image_token="image_id"))
