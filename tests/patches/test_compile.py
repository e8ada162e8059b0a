"""Compiled hosts: attached before or after, no graph break, few graphs, the same edits."""

import pytest
import torch
from conftest import CACHE, IMAGE_TOKEN, make_llava, random_dictionary
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from transformers import CompileConfig, StaticCache

from vlm_edit import Host, Keep, Patch, Project, Scale, Steer
from vlm_edit.edits import Blend, Cap, Detect

NEW = 6
DICTIONARY = random_dictionary(32)
CHOICES = {
    "all": {},
    "image": {"tokens": "image"},
    "text": {"tokens": "text+special"},
    "prompt": {"phase": "prompt"},
    "decode": {"phase": "decode"},
    "steps": {"phase": "decode", "steps": (1, 3)},
    "positions": {"positions": (0, -1)},
    "schedule": {"schedule": [0.5, 2.0]},
    "gate": {"gate": 0.2},
}
RULES = {
    "blend": Blend(range(20), [0.5] * 20),
    "cap": Cap(range(30), 0.3),
    "detect": Detect(range(10), [0.2] * 32, threshold=0.5),
    "keep": Keep(range(10)),
    "project": Project(range(8)),
    "push": Steer(range(8), 0.5, relative=True),
}


@pytest.fixture
def host():
    """Its compiled code is its own."""
    torch.compiler.reset()
    counters.clear()
    yield make_llava()
    torch.compiler.reset()


def patch(**choice) -> Patch:
    return Patch("language.1", DICTIONARY, Scale(range(30), 3.0), **choice)


def prompts(words=3):
    """Two prompts of 6 + words tokens, the second padded."""
    image = [IMAGE_TOKEN] * 4
    ids = torch.tensor([[1, 5, *image, *[6] * words], [0, 0, 1, *image, *[9] * (words - 1)]])
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": pixels}


@torch.no_grad()
def generate(host, inputs, compiled, backend="eager"):
    """Greedy decoding with a static cache; compiled, a step must be one graph."""
    config = CompileConfig(fullgraph=True, backend=backend, mode=None)
    config._compile_all_devices = True  # as on a GPU, where ``generate`` compiles by itself
    output = host.generate(
        **inputs,
        **{CACHE: StaticCache(config=host.config.get_text_config(), max_cache_len=32)},
        compile_config=config,
        disable_compile=not compiled,
        max_new_tokens=NEW,
        do_sample=False,
        suppress_tokens=[IMAGE_TOKEN],
        return_dict_in_generate=True,
        output_logits=True,
    )
    return torch.stack(output.logits, 1)


@pytest.mark.parametrize(
    ("choice", "strength"),
    [*((c, 1.0) for c in CHOICES), ("all", [0.0, 2.0]), ("text", [1.0, 0.0])],
)
def test_a_compiled_decode_step_is_one_graph_and_edits_as_the_eager_one(host, choice, strength):
    inputs = prompts()
    with patch(**CHOICES[choice]).attach(host, strength=strength) as eager:
        expected = generate(host, inputs, compiled=False)
    with patch(**CHOICES[choice]).attach(host, strength=strength) as attached:
        got = generate(host, inputs, compiled=True)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] >= 1
    assert attached.report() == eager.report()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_every_rule_stays_in_one_graph(host, rule, activation):
    inputs = prompts()
    one = Patch("language.1", random_dictionary(32, activation=activation), RULES[rule])
    with one.attach(host):
        expected = generate(host, inputs, compiled=False)
    plain = generate(host, inputs, compiled=False)
    assert not torch.allclose(plain, expected, atol=1e-3)
    with one.attach(host):
        got = generate(host, inputs, compiled=True)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
    assert not counters["graph_break"]


@pytest.mark.parametrize("choice", ["text", "decode", "positions"])
def test_prompts_of_many_lengths_share_a_few_graphs(host, choice):
    with patch(**CHOICES[choice]).attach(host):
        for words in range(2, 9):
            inputs = prompts(words)
            got = generate(host, inputs, compiled=True)
            expected = generate(host, inputs, compiled=False)
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert counters["stats"]["unique_graphs"] <= 5
    assert not counters["graph_break"]


def test_a_patch_may_come_and_go_after_the_first_compiled_call(host):
    inputs = prompts()
    plain = generate(host, inputs, compiled=True)
    with patch().attach(host):
        expected = generate(host, inputs, compiled=False)
        torch.testing.assert_close(
            generate(host, inputs, compiled=True), expected, rtol=1e-4, atol=1e-4
        )
    assert not torch.allclose(plain, expected, atol=1e-3)
    assert torch.equal(generate(host, inputs, compiled=True), plain)


@torch.no_grad()
def test_patches_on_a_prepared_host_act_and_come_off_to_the_bit(host):
    inputs = prompts()
    Host.of(host).prepare()
    plain = host(**inputs).logits
    compiled = torch.compile(host, backend="eager", fullgraph=True)
    compiled_plain = compiled(**inputs).logits
    torch.testing.assert_close(compiled_plain, plain, rtol=1e-4, atol=1e-4)
    graphs = []
    for features, by in ((range(30), 3.0), (range(2, 32), -1.0), (range(30), 3.0)):
        one = Patch("language.1", DICTIONARY, Scale(features, by))
        with one.attach(host) as eager:
            expected = host(**inputs).logits
        with one.attach(host) as attached:
            got = compiled(**inputs).logits
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(got, compiled_plain, atol=1e-3)
        assert attached.report() == eager.report()
        assert torch.equal(compiled(**inputs).logits, compiled_plain)
        assert torch.equal(host(**inputs).logits, plain)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[1] == graphs[2]


@torch.no_grad()
def test_generate_of_a_prepared_host_compiles_a_patch_once(host):
    inputs = prompts()
    Host.of(host).prepare()
    plain, graphs = generate(host, inputs, compiled=True), []
    for _ in range(9):  # more than torch keeps for one function
        with patch().attach(host):
            got = generate(host, inputs, compiled=True)
            expected = generate(host, inputs, compiled=False)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(got, plain, atol=1e-3)
        assert torch.equal(generate(host, inputs, compiled=True), plain)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[-1]
    assert not counters["graph_break"]


def test_a_new_strength_needs_no_new_graph(host):
    inputs = prompts()
    with patch().attach(host, strength=[1.0, 1.0]) as attached:
        generate(host, inputs, compiled=True)
        graphs = counters["stats"]["unique_graphs"]
        for strength in ([0.0, 2.0], [0.5, 0.0]):
            attached.set_strength(strength)
            got = generate(host, inputs, compiled=True)
            expected = generate(host, inputs, compiled=False)
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        assert counters["stats"]["unique_graphs"] == graphs


@pytest.mark.parametrize("choice", ["image", "text"])
def test_a_compiled_forward_is_one_graph(host, choice):
    inputs = prompts()
    compiled = torch.compile(host, backend="eager", fullgraph=True)
    with torch.no_grad(), patch(**CHOICES[choice]).attach(compiled):
        expected = host(**inputs).logits  # first: LLaVA installs hooks of its own at its first call
        torch.testing.assert_close(compiled(**inputs).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_compiled_call_of_one_token_holds_one_sequence(host):
    """Though nobody looks at its places there, and it has no attention mask."""
    inputs = {"input_ids": torch.tensor([[5]]), "position_ids": torch.tensor([[0]])}
    compiled = torch.compile(host, backend="eager", fullgraph=True)
    with torch.no_grad():
        plain = host(**inputs).logits
        with patch(phase="prompt").attach(compiled):
            expected = host(**inputs).logits
            torch.testing.assert_close(compiled(**inputs).logits, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain, expected, atol=1e-3)


@pytest.mark.slow
@pytest.mark.kernels
def test_inductor_gives_the_same_generation(host, monkeypatch):
    # Its cache does not tell processors apart: what AVX-512 compiled gives NaN by AVX2.
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        # Without vectors inductor of torch 2.13 writes at::vec into some kernels all the same.
        monkeypatch.setattr(inductor.cpp, "simdlen", 1)
    inputs = prompts()
    with patch(tokens="text+special", steps=(1, 3)).attach(host):
        expected = generate(host, inputs, compiled=False)
        got = generate(host, inputs, compiled=True, backend="inductor")
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
