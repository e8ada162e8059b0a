"""A host: what is known of a model, looked up once, and the model stays the user's own."""

import copy

import pytest
import torch
from torch import nn

from vlm_edit import Ablate, Adapter, Dictionary, Host, Patch, find_sites, measure, record, zoo
from vlm_edit.cli import main
from vlm_edit.ground.errors import BadArgument, CannotKnow, UnknownName
from vlm_edit.host import host as of_hosts
from vlm_edit.host import unwrap
from vlm_edit.measuring import Reader


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


ADAPTER = Adapter.of({"vision.{i}": ("blocks.{i}", "image", 4)})


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Each time that the sites of a model are looked up."""
    seen: list[nn.Module] = []
    resolve = of_hosts.resolve

    def counted(root: nn.Module, adapter: Adapter) -> object:
        seen.append(root)
        return resolve(root, adapter)

    monkeypatch.setattr(of_hosts, "resolve", counted)
    return seen


def test_a_host_holds_the_model_and_does_not_become_it() -> None:
    model, processor = zoo.load_host()
    before = set(vars(model)), {n for n, _ in model.named_modules()}
    host = Host.of(model, processor)
    assert host.model is model and host.processor is processor and host.root is model
    assert host.sites.keys() == find_sites(model).keys()
    assert (set(vars(model)), {n for n, _ in model.named_modules()}) == before
    assert not isinstance(host, nn.Module)


def test_a_host_comes_back_as_it_is_and_takes_nothing_more() -> None:
    host = Host.of(Tower(), adapter=ADAPTER)
    assert Host.of(host) is host
    with pytest.raises(BadArgument, match="takes no other processor, adapter or prompt: pass its"):
        Host.of(host, adapter=ADAPTER)


@pytest.mark.parametrize("given", ["clip", None, 3, {"a": 1}])
def test_what_is_no_model_is_refused(given: object) -> None:
    with pytest.raises(BadArgument, match="is no host: give a torch.nn.Module, or a pipeline"):
        Host.of(given)  # type: ignore[arg-type]


def test_a_processor_in_the_adapters_place_is_refused() -> None:
    model, processor = zoo.load_host()
    with pytest.raises(BadArgument, match="adapter is a CLIPProcessor; give a vlm_edit.Adapter"):
        Host.of(model, None, processor)


def test_the_sites_are_looked_up_once(looked_up: list[nn.Module]) -> None:
    host = Host.of(Tower(), adapter=ADAPTER)
    assert not looked_up
    for _ in range(3):
        host.site("vision.1")
        assert len(host.sites) == 3
    with record(host, "vision.0", "vision.1"):
        host(x=torch.ones(1, 4))
    assert len(looked_up) == 1


def test_a_measurement_looks_them_up_once_whatever_the_number_of_batches(
    looked_up: list[nn.Module],
) -> None:
    host, dictionary = Host.of(*zoo.load_host()), zoo.load_dictionary("joint")
    pairs = zoo.load_pairs().select(range(12))
    for size in (12, 2):
        measure(host, pairs, dictionary, batch_size=size, progress=False)
    assert len(looked_up) == 1


@pytest.mark.slow
def test_an_attack_loads_its_model_once(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    load = zoo.load_host
    monkeypatch.setattr(zoo, "load_host", lambda *given: loaded.append(given) or load(*given))
    command = ["attack", "zoo:emoji-clip", "zoo:pairs", "--label", "label", "--most", "4"]
    command += ["--eps", "1", "--steps", "2", "--queries", "0", "--dictionary", "zoo:joint"]
    command += ["--patch", "zoo:robust-emoji-clip", "--out", str(tmp_path)]
    assert main(command) == 0
    assert len(loaded) == 1


def test_a_module_that_was_exchanged_is_not_edited_in_its_old_place() -> None:
    model = Tower()
    host = Host.of(model, adapter=ADAPTER)
    host.site("vision.1")
    model.blocks[1] = nn.Linear(4, 4)
    assert host.site("vision.1").taps[0].module is model.blocks[1]
    assert host.sites["vision.1"].taps[0].module is model.blocks[1]
    x = torch.randn(2, 4)
    before = model(x)
    with Patch("vision.1", Dictionary.identity(4), Ablate(range(4))).attach(host):
        assert not torch.equal(model(x), before)


def test_a_tower_that_lost_a_layer_loses_its_site() -> None:
    model = Tower()
    host = Host.of(model, adapter=ADAPTER)
    assert "vision.2" in host.sites
    model.blocks = model.blocks[:2]
    assert list(host.sites) == ["vision.0", "vision.1"]
    with pytest.raises(UnknownName, match="Tower has no site 'vision.2'; its sites are vision.0"):
        host.site("vision.2")


def test_a_pipeline_that_exchanged_a_model_is_followed() -> None:
    class Both:
        def __init__(self) -> None:
            self.components = {"clip": zoo.load_host()[0]}

    from vlm_edit.host import PipelineAdapter, PipelineEncoder, join_adapters

    pipeline = Both()
    host = Host.of(
        pipeline, adapter=join_adapters(pipeline, PipelineAdapter((PipelineEncoder("clip"),)))
    )
    old = host.site("clip.joint").taps[0].module
    pipeline.components = {"clip": copy.deepcopy(pipeline.components["clip"])}
    new = host.site("clip.joint").taps[0].module
    assert new is not old and new is pipeline.components["clip"].visual_projection
    assert host.is_pipeline and host.kind is Both


def test_calls_go_through_what_wraps_the_model() -> None:
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self._orig_mod, self.calls = inner, 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self._orig_mod(x)

    wrapper = Wrapper(Tower())
    host = Host.of(wrapper, adapter=ADAPTER)
    assert host.root is unwrap(wrapper) is wrapper._orig_mod
    host(x=torch.ones(1, 4))
    assert wrapper.calls == 1


def test_pairs_cannot_be_read_without_a_processor() -> None:
    model, processor = zoo.load_host()
    pairs, dictionary = zoo.load_pairs().select(range(2)), zoo.load_dictionary("joint")
    with pytest.raises(CannotKnow, match=r"needs the host's processor, .* Host.of\(model, proc"):
        measure(model, pairs, dictionary, progress=False)
    wanted = r"pairs is .*; give Pairs, a list of .*; a processor goes into Host"
    with pytest.raises(BadArgument, match=wanted):
        measure(model, processor, pairs, dictionary, progress=False)  # type: ignore[arg-type]


def test_a_prompt_of_ones_own_makes_the_inputs() -> None:
    model, processor = zoo.load_host()
    pairs, asked = zoo.load_pairs().select(range(3)), []

    def shouted(processor, images, texts):
        asked.append(list(texts))
        texts = ["a cat"] * len(texts)
        return processor(text=texts, images=images, return_tensors="pt", padding=True)

    def hidden(host: Host) -> torch.Tensor:
        reader = Reader(host, Dictionary.identity(192), progress=False)
        return torch.cat([batch.hidden["text"] for batch in reader.read(pairs)])

    plain = hidden(Host.of(model, processor))
    assert not torch.equal(hidden(Host.of(model, processor, prompt=shouted)), plain)
    assert asked == [list(pairs.texts)]


def test_texts_that_are_longer_than_the_host_takes_are_cut_and_counted() -> None:
    host, pairs = Host.of(*zoo.load_host()), zoo.load_pairs()
    long = " ".join(["cat"] * (host.text_limit or 0))
    made = host.inputs([pairs.open(0)] * 2, ["a cat", long])
    assert made.cut == 1 and made.values["input_ids"].shape[1] == host.text_limit
    assert host.inputs([pairs.open(0)], ["a cat"]).cut == 0


def test_inputs_go_where_the_weights_are_and_into_their_dtype() -> None:
    host = Host.of(Tower().double(), adapter=ADAPTER)
    placed = host.place({"x": torch.ones(1, 4), "ids": torch.ones(1, dtype=torch.int64), "n": 3})
    assert placed["x"].dtype == torch.float64
    assert placed["ids"].dtype == torch.int64 and placed["n"] == 3
    assert host.device == placed["x"].device


def test_a_host_shows_itself_on_one_line() -> None:
    assert repr(Host.of(Tower(), adapter=ADAPTER)) == "Host(Tower with 3 sites)"
    assert repr(Host.of(Tower())) == "Host(Tower without known sites)"
    assert repr(Host.of(*zoo.load_host())).endswith(" sites and a CLIPProcessor)")


def test_a_host_that_is_dropped_while_a_patch_is_on_it_is_freed() -> None:
    import gc
    import weakref

    host = Host.of(Tower(), adapter=ADAPTER)
    attached = Patch("vision.1", Dictionary.identity(4), Ablate([1])).attach(host)
    known = weakref.ref(host.root)
    del host
    gc.collect()
    assert known() is None
    attached.remove()
