"""Hosts that every test can have: tiny, random, seeded."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch: workers and what they start share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections import Counter
from collections.abc import Callable
from inspect import signature
from pathlib import Path

import pytest
import torch
from PIL import Image
from tables import keep_todays
from tables import pytest_addoption as pytest_addoption
from tables import pytest_configure as pytest_configure
from tables import pytest_configure_node as pytest_configure_node
from tables import pytest_report_header as pytest_report_header
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from vlm_edit import Dictionary, Host, Pairs, zoo
from vlm_edit.dictionaries import Encoder
from vlm_edit.tasks.bias import Bench, Questions, Study

pytest.register_assert_rewrite("browsed_pages")

IMAGE_TOKEN = 60
# A chat template for the zoo's LLaVA, which brings none.
CHAT = (
    "{% for message in messages %}<s>USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] | trim }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
# What this transformers calls a cache, in arguments and in outputs.
CACHE = next(
    n for n in ("cache", "past_key_values") if n in signature(LlamaModel.forward).parameters
)


# What a report says of a site where nothing was edited.
NO_TOKENS = dict.fromkeys(("image", "video", "audio", "text", "special", "unknown"), 0)

TESTS = Path(__file__).parent
# What `pytest -m core` runs, in less than a minute: the rooms that everything stands on.
CORE = (
    *("ground/test_[ces]*.py", "ground/test_files.py", "edits/*.py"),
    *("host/test_fingerprint.py", "host/test_hosting.py", "host/test_sites.py"),
    *("hooks/test_calls.py", "hooks/test_flat_outputs.py", "hooks/test_methods.py"),
    *("hooks/test_packed_rows.py", "hooks/test_record.py", "hooks/test_tokens.py"),
    *("dictionaries/test_dictionary.py", "dictionaries/test_activations.py"),
    *("dictionaries/test_origin.py", "dictionaries/test_sparse_encoding.py"),
    *("patches/test_attachment.py", "patches/test_patch.py", "patches/test_report.py"),
    *("patches/test_storage.py", "patches/test_where_edits_act.py"),
    *("measures/dominance/test_dominance.py", "house/test_architecture.py"),
)
SLOW_IN_CORE = ("compil", "test_an_attack_loads", "continuous_batching", "bootstrap")


def is_core(path: Path) -> bool:
    return any(path.match(f"tests/{pattern}") for pattern in CORE)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import nothing else where the core alone is asked for."""
    if config.option.markexpr != "core" or collection_path.is_dir():
        return None
    return None if collection_path == TESTS / "conftest.py" else not is_core(collection_path)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the core, and take today's rows of the long tables."""
    for item in items:
        quick = not any(word in item.name for word in SLOW_IN_CORE)
        if quick and item.get_closest_marker("slow") is None and is_core(item.path):
            item.add_marker("core")
    keep_todays(config, items)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Close with what was skipped, and what would enable it."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
    )
    if reasons:
        told = "; ".join(f"{n} ({reason})" for reason, n in reasons.most_common())
        terminalreporter.write_line(f"skipped: {told}")


def make_vision() -> CLIPVisionConfig:
    """The tower that both hosts have."""
    return CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=12,
    )


def make_clip() -> CLIPModel:
    """A random CLIP: widths 24 (vision), 16 (text), 12 (joint), three layers each."""
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=1,
        eos_token_id=63,
        pad_token_id=0,
    )
    config = CLIPConfig(
        text_config=text.to_dict(), vision_config=make_vision().to_dict(), projection_dim=12
    )
    return CLIPModel(config).eval()


def make_llava() -> LlavaForConditionalGeneration:
    """A random LLaVA: widths 24 (vision) and 32 (language), three layers each, 4 image tokens."""
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
        initializer_range=0.2,
    )
    config = LlavaConfig(
        vision_config=make_vision(),
        text_config=text,
        image_token_id=IMAGE_TOKEN,
        vision_feature_layer=-2,
        eos_token_id=None,
    )
    return LlavaForConditionalGeneration(config).eval()


def random_dictionary(
    width: int, n_features: int = 40, activation: str = "relu", seed: int = 0
) -> Dictionary:
    """A random dictionary whose features are active about half of the time."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(width, n_features, generator=generator) / width**0.5
    decoder = torch.randn(n_features, width, generator=generator) / width**0.5
    bias = torch.randn(n_features, generator=generator) * 0.1
    encoder = Encoder(
        weight,
        bias,
        activation,
        threshold=torch.full((n_features,), 0.2) if activation == "jumprelu" else None,
        k=8 if activation == "topk" else None,
        subtract=torch.randn(width, generator=generator) * 0.1,
    )
    return Dictionary(encoder, decoder, torch.randn(width, generator=generator) * 0.1)


@pytest.fixture
def clip() -> CLIPModel:
    """A fresh random CLIP."""
    return make_clip()


@pytest.fixture
def llava() -> LlavaForConditionalGeneration:
    """A fresh random LLaVA."""
    return make_llava()


@pytest.fixture
def clip_inputs() -> dict[str, torch.Tensor]:
    """Three images and three texts, the last two shorter and right-padded."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.tensor([[1, 5, 6, 7, 63], [1, 8, 9, 63, 0], [1, 10, 63, 0, 0]])
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "pixel_values": torch.randn(3, 3, 16, 16, generator=generator),
    }


@pytest.fixture
def llava_inputs() -> dict[str, torch.Tensor]:
    """Two prompts with an image each, the second shorter and left-padded."""
    generator = torch.Generator().manual_seed(1)
    image = [IMAGE_TOKEN] * 4
    ids = torch.tensor([[1, 5, *image, 6, 7, 8], [0, 0, 1, *image, 9, 10]])
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "pixel_values": torch.randn(2, 3, 16, 16, generator=generator),
    }


@pytest.fixture
def dictionary() -> Callable[..., Dictionary]:
    """Makes random dictionaries."""
    return random_dictionary


@pytest.fixture(scope="session")
def bench() -> Bench:
    """The zoo's host on its first 300 pairs, and who in them is a man or a woman."""
    pairs = zoo.load_pairs().select(range(300))
    people = {c for c, g in zip(*(pairs.columns[k] for k in ("concept", "gender")), strict=True)
              if g in ("man", "woman")}  # fmt: skip
    roles = sorted(people)[:6]
    asked = Questions(
        "gender",
        {value: [value, f"a picture of {value}"] for value in ("man", "woman")},
        queries=[f"a picture of {role}" for role in roles],
        label="concept",
        labels={f"a picture of {c}": c for c in sorted(set(pairs.columns["concept"]))},
        variants={
            f"a picture of {role}": {v: f"a picture of {v} {role}" for v in ("man", "woman")}
            for role in roles
        },
    )
    return Bench.read(Host.of(*zoo.load_host()), pairs, asked, batch_size=100)


@pytest.fixture
def planted() -> Study:
    """Forty images in 12 dimensions: the first is the group, the second the label."""
    generator = torch.Generator().manual_seed(0)
    n = 40
    image = 0.1 * torch.randn(n, 12, generator=generator)
    group = ["man" if i % 2 else "woman" for i in range(n)]
    label = ["cook" if i % 4 < 2 else "pilot" for i in range(n)]
    image[:, 0] += torch.tensor([1.0 if g == "man" else -1.0 for g in group])
    image[:, 1] += torch.tensor([1.0 if x == "cook" else -1.0 for x in label])
    image[:, 2] += 2.0
    axes = torch.eye(12)
    shared = axes[2]
    text = {
        "a man": axes[0] + shared,
        "a woman": -axes[0] + shared,
        "anybody": 0.3 * axes[0] + shared,
        "a cook": 0.2 * axes[0] + axes[1] + shared,
        "a pilot": 0.2 * axes[0] - axes[1] + shared,
        "a male cook": 0.9 * axes[0] + axes[1] + shared,
        "a female cook": -0.9 * axes[0] + axes[1] + shared,
    }
    asked = Questions(
        "gender",
        {"man": ["a man"], "woman": ["a woman"]},
        queries=["anybody", "a cook"],
        label="job",
        labels={"a cook": "cook", "a pilot": "pilot"},
        variants={"a cook": {"man": "a male cook", "woman": "a female cook"}},
    )
    pairs = Pairs(
        [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(n)],
        tuple(f"caption {i}" for i in range(n)),
        {"gender": tuple(group), "job": tuple(label)},
    )
    rows = torch.stack([text[t] for t in asked.texts()])
    return Study(asked, pairs, image, image.clone(), rows)
