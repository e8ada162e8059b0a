"""On a GPU: the same edits as on a CPU, no wait for the device, compiled as by ``generate``."""

import pytest
import torch
from conftest import IMAGE_TOKEN, make_clip, make_llava, random_dictionary

from vlm_edit import Ablate, Clamp, Keep, Patch, Project, Scale, Steer, load_patch
from vlm_edit.edits import Blend, Cap, Detect, Splice
from vlm_edit.ground.checksums import checksum

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

DEVICE, WIDTH = "cuda", 32
RULES = {
    "ablate": Ablate(range(20)),
    "ablate one": Ablate([3]),
    "blend": Blend(range(20), [0.5] * 20),
    "cap": Cap(range(30), 0.3),
    "clamp": Clamp([1, 2], 2.0),
    "detect": Detect(range(10), [0.2] * WIDTH, threshold=0.5),
    "keep": Keep(range(10)),
    "project": Project(range(8)),
    "push": Steer(range(8), 0.5, relative=True),
    "scale one": Scale([3], 3.0),
    "steer": Steer([5], 4.0),
}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}


def prompts(device=DEVICE, dtype=torch.float32):
    """Two prompts, the second padded on the left."""
    image = [IMAGE_TOKEN] * 4
    ids = torch.tensor([[1, 5, *image, 6, 7, 8], [0, 0, 1, *image, 9, 9]])
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": pixels}
    found = {name: value.to(device) for name, value in found.items()}
    return found | {"pixel_values": found["pixel_values"].to(dtype)}


@torch.no_grad()
def generate(host, given, tokens=6, **options):
    output = host.generate(
        **given,
        max_new_tokens=tokens,
        do_sample=False,
        suppress_tokens=[IMAGE_TOKEN],
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    return torch.stack(output.logits, 1)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_gives_what_it_gives_on_a_cpu(rule, activation, dtype):
    splice = Splice.of(random_dictionary(WIDTH, activation=activation), [RULES[rule]])
    hidden = torch.randn(3, 50, WIDTH, generator=torch.Generator().manual_seed(0)).to(dtype)
    mask = torch.rand(3, 50, generator=torch.Generator().manual_seed(1)) > 0.5
    with torch.no_grad():
        expected = splice(hidden, mask)
        found = splice(hidden.to(DEVICE), mask.to(DEVICE))
    assert found.dtype == dtype
    assert found.device.type == DEVICE
    assert not torch.equal(expected, hidden)
    close = TOLERANCE[dtype]
    torch.testing.assert_close(found.cpu(), expected, rtol=close, atol=close)
    assert torch.equal(found.cpu()[~mask], hidden[~mask])


@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_a_generation_is_the_cpus(activation):
    one = Patch("language.1", random_dictionary(WIDTH, activation=activation), Scale([3], 4.0))
    host = make_llava()
    with one.attach(host) as slow:
        expected = generate(host, prompts("cpu"))
    host.to(DEVICE)
    plain = generate(host, prompts())
    with one.attach(host) as attached:
        found = generate(host, prompts())
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(found, plain, atol=1e-3)
    assert torch.equal(generate(host, prompts()), plain)
    assert attached.report() == slow.report()


def test_a_host_in_bfloat16_keeps_its_dtype_and_is_known_as_the_same(tmp_path):
    one = Patch("language.1", random_dictionary(WIDTH), Clamp([3], 4.0), tokens="text+special")
    one.save(tmp_path / "x.safetensors", make_llava())
    host = make_llava().to(DEVICE, torch.bfloat16)
    given = prompts(dtype=torch.bfloat16)
    plain = host(**given).logits
    with load_patch(tmp_path / "x.safetensors").attach(host):
        found = host(**given).logits
    assert found.dtype == torch.bfloat16
    assert not torch.equal(found, plain)
    assert torch.equal(host(**given).logits, plain)


@pytest.mark.parametrize(
    "choice", [{}, {"tokens": "image"}, {"tokens": "text+special"}, {"phase": "decode"}]
)
@pytest.mark.parametrize("activation", ["jumprelu", "topk"])
def test_no_edit_waits_for_the_device(activation, choice):
    host = make_llava().to(DEVICE)
    dictionary = random_dictionary(WIDTH, activation=activation)
    rules = [Scale(range(9), 3.0), Project([20]), Detect([4], [0.1] * WIDTH, 0.2, "add")]
    hidden = torch.randn(2, 9, WIDTH, device=DEVICE)
    splice = Splice.of(dictionary, rules)
    splice(hidden)
    mask = torch.ones(2, 9, dtype=torch.bool, device=DEVICE)
    waits = syncs(lambda: host(**prompts()))
    with Patch("language.1", dictionary, rules, **choice).attach(host):
        host(**prompts())
        assert syncs(lambda: splice(hidden, mask)) == 0
        assert syncs(lambda: host(**prompts())) <= waits


def syncs(run):
    """How often torch waits for the device in a run without gradients."""
    import warnings

    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught, torch.no_grad():
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("activation", ["jumprelu", "topk"])
def test_a_static_cache_is_compiled_and_edited_alike(activation):
    one = Patch("language.1", random_dictionary(WIDTH, activation=activation), Scale([3], 4.0))
    host = make_llava().to(DEVICE)
    with one.attach(host):
        expected = generate(host, prompts(), disable_compile=True)
        found = generate(host, prompts(), cache_implementation="static")
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    torch.compiler.reset()


def test_a_dictionary_measures_and_sparsifies_alike():
    x = torch.randn(600, WIDTH, generator=torch.Generator().manual_seed(0))
    for activation in ("relu", "jumprelu", "topk"):
        encoder = random_dictionary(WIDTH, activation=activation).encoder
        expected = encoder(x)[0]
        found = encoder.to(DEVICE)(x.to(DEVICE))[0].cpu()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        sparse = encoder.to(DEVICE).sparse(x.to(DEVICE))
        dense = torch.zeros(sparse.shape)
        dense[sparse.rows.cpu(), sparse.features.cpu()] = sparse.values.cpu()
        torch.testing.assert_close(dense, expected, rtol=1e-4, atol=1e-5)


def test_both_towers_of_a_clip_are_edited():
    host = make_clip().to(DEVICE)
    one = Patch("joint", random_dictionary(12), Ablate(range(10)))
    pixels = torch.randn(2, 3, 16, 16, device=DEVICE)
    ids = torch.tensor([[1, 5, 63]], device=DEVICE)
    with torch.no_grad():
        plain = host(input_ids=ids, pixel_values=pixels)
        with one.attach(host):
            found = host(input_ids=ids, pixel_values=pixels)
    assert not torch.allclose(found.image_embeds, plain.image_embeds)
    assert not torch.allclose(found.text_embeds, plain.text_embeds)


def test_a_checksum_is_that_of_the_cpu():
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        x = torch.randn(3_000_001, generator=torch.Generator().manual_seed(0)).to(dtype)
        assert checksum(x.to(DEVICE)) == checksum(x)
        assert checksum(x[1:].to(DEVICE)[:9]) == checksum(x[1:10])
