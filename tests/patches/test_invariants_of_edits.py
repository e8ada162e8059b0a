"""The invariants of docs/architecture.md in a host, for random rules, dictionaries and tokens."""

import pytest
import torch
from conftest import IMAGE_TOKEN, make_llava, random_dictionary
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_edit import Ablate, Clamp, Keep, Patch, Project, Scale, Steer, load_patch
from vlm_edit.edits import Blend, Cap, Detect

pytestmark = pytest.mark.kernels

WIDTH, FEATURES = 32, 64
HOSTS = {dtype: make_llava().to(dtype) for dtype in (torch.float32, torch.bfloat16)}
SITES = {"language.0": WIDTH, "language.1": WIDTH, "vision.0": 24}
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 6e-2}

some = st.lists(st.integers(0, FEATURES - 1), min_size=1, max_size=6, unique=True)
number = st.sampled_from([-1.0, 0.25, 0.5, 2.0])


@st.composite
def rules(draw, width):
    """Two rules at most, of any kind."""
    found = []
    for _ in range(draw(st.integers(1, 2))):
        chosen, kind = draw(some), draw(st.integers(0, 9))
        found.append(
            [
                lambda f=chosen: Ablate(f),
                lambda f=chosen: Scale(f, draw(number)),
                lambda f=chosen: Clamp(f, draw(number)),
                lambda f=chosen: Steer(f, draw(number)),
                lambda f=chosen: Steer(f, 0.25, relative=True),
                lambda f=chosen: Cap(f, 0.25),
                lambda f=chosen: Blend(f, [0.5] * len(f)),
                lambda f=chosen: Keep(f),
                lambda f=chosen: Project(f),
                lambda f=chosen: Detect(f, [0.1] * width, 0.3, "add"),
            ][kind]()
        )
    return found


@st.composite
def patches(draw):
    """A patch of any site, dictionary, tokens and options, and the host's dtype."""
    site = draw(st.sampled_from(list(SITES)))
    width = SITES[site]
    activation = draw(st.sampled_from(["relu", "topk", "jumprelu"]))
    options = {}
    if site != "vision.0":
        options["tokens"] = draw(st.sampled_from(["all", "image", "text+special"]))
        options["phase"] = draw(st.sampled_from(["both", "prompt"]))
        options["schedule"] = draw(st.sampled_from([None, [0.5, 2.0]]))
    options["gate"] = draw(st.sampled_from([None, None, 0.1]))
    dictionary = random_dictionary(width, FEATURES, activation)
    return Patch(site, dictionary, draw(rules(width)), **options)


def inputs(dtype):
    """Two prompts, the second padded on the left."""
    image = [IMAGE_TOKEN] * 4
    ids = torch.tensor([[1, 5, *image, 6, 7, 8], [0, 0, 0, 1, *image, 9]])
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mask = (ids != 0).long()
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels.to(dtype)}


@torch.no_grad()
def logits(host, given, rows=slice(None)):
    """Of real tokens alone: what stands at padding means nothing."""
    part = {name: value[rows] for name, value in given.items()}
    found = host(**part).logits
    return found[part["attention_mask"].bool()]


@torch.no_grad()
def generate(host, given, **options):
    output = host.generate(
        **given,
        max_new_tokens=4,
        do_sample=False,
        suppress_tokens=[IMAGE_TOKEN],
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    return torch.stack(output.logits, 1)


dtypes = st.sampled_from(list(HOSTS))


@settings(max_examples=60, deadline=None)
@given(patches(), dtypes)
def test_attached_it_keeps_the_dtype_and_detached_every_bit(one, dtype):
    host, given = HOSTS[dtype], inputs(dtype)
    before = logits(host, given)
    with one.attach(host) as attached:
        during = logits(host, given)
    assert during.dtype == dtype
    assert bool(during.isfinite().all())
    assert attached.report().edited_tokens > 0
    assert torch.equal(logits(host, given), before)


@settings(max_examples=40, deadline=None)
@given(patches(), dtypes)
def test_at_strength_zero_no_bit_changes(one, dtype):
    host, given = HOSTS[dtype], inputs(dtype)
    before = logits(host, given)
    with one.attach(host, strength=[0.0, 0.0]):
        assert torch.equal(logits(host, given), before)


@settings(max_examples=60, deadline=None)
@given(patches(), dtypes)
def test_a_batch_is_its_rows(one, dtype):
    host, given = HOSTS[dtype], inputs(dtype)
    with one.attach(host):
        both = logits(host, given)
        rows = torch.cat([logits(host, given, slice(i, i + 1)) for i in range(2)])
    torch.testing.assert_close(both, rows, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@settings(max_examples=25, deadline=None)
@given(patches())
def test_a_cache_changes_nothing(one):
    host, given = HOSTS[torch.float32], inputs(torch.float32)
    with one.attach(host):
        cached, whole = generate(host, given), generate(host, given, use_cache=False)
    torch.testing.assert_close(cached, whole, rtol=1e-3, atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(patches())
def test_saved_and_loaded_it_does_the_same_to_the_bit(tmp_path_factory, one):
    host, given = HOSTS[torch.float32], inputs(torch.float32)
    path = tmp_path_factory.mktemp("patch") / "one.safetensors"
    one.save(path, host)
    with one.attach(host):
        expected = generate(host, given)
    with load_patch(path).attach(host):
        assert torch.equal(generate(host, given), expected)


@pytest.mark.parametrize("engine", ["hooks", "nnsight"])
def test_gradients_reach_the_pixels_through_every_rule(engine):
    host, given = HOSTS[torch.float32], inputs(torch.float32)
    every = [Scale([1, 2], 2.0), Project([3]), Steer([4], 0.1, relative=True), Cap([5], 0.2)]
    one = Patch("vision.0", random_dictionary(24, FEATURES), every, gate=0.05)
    pixels = given["pixel_values"].requires_grad_()
    with one.attach(host, via=engine):
        host(**{**given, "pixel_values": pixels}).logits.sum().backward()
    assert float(pixels.grad.abs().sum()) > 0
