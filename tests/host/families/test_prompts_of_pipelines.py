"""Prompts that a pipeline encodes and does not draw: what is read of them, and which tokens."""

from typing import Any

import pytest
import torch
from tiny_pipelines import PIPELINES, SMALL, picture
from torch import nn

from vlm_edit import Adapter, Dictionary, Host, Patch, Scale, VlmEditError
from vlm_edit.host import PipelineAdapter, PipelineEncoder, PipelineHost
from vlm_edit.host.pipelines import encode
from vlm_edit.measuring import collect

LAYER = "text_encoder.text.1"
PROMPTS = ["a cat", "a red dog on a cat", "fast"]


def made(name: str) -> Any:
    pipe = PIPELINES[name].make()
    for model in pipe.components.values():
        if isinstance(model, nn.Module):
            model.eval()
    return pipe


def of_texts(host: Host) -> list[str]:
    return [name for name, site in host.sites.items() if site.streams == ("text",)]


def read(host: Host, site: str) -> torch.Tensor:
    streams = collect(host, PROMPTS, site, progress=False)
    assert list(streams) == ["text"]
    return streams["text"]


@pytest.mark.parametrize("name", PIPELINES)
def test_what_is_read_is_what_passes_while_the_prompts_are_drawn(name: str) -> None:
    pipe = made(name)

    def call(_processor: Any, _images: Any, texts: list[str]) -> dict[str, Any]:
        usual = {k: v for k, v in PIPELINES[name].call.items() if k != "max_sequence_length"}
        return {"prompt": list(texts), **usual}

    host, drawn = Host.of(pipe), Host.of(pipe, prompt=call)
    sites = of_texts(host)
    assert sites
    for site in (sites[0], sites[-1]):
        torch.testing.assert_close(read(host, site), read(drawn, site))


def test_the_words_of_a_prompt_are_read_as_the_encoder_gives_them() -> None:
    pipe = made("sd")
    told = pipe.tokenizer(
        PROMPTS, padding="max_length", max_length=12, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        layers = pipe.text_encoder(told["input_ids"], output_hidden_states=True).hidden_states
    words = ~torch.isin(told["input_ids"], torch.tensor(pipe.tokenizer.all_special_ids))
    assert words.sum(1).tolist() == [2, 6, 1]
    torch.testing.assert_close(read(Host.of(pipe), LAYER), layers[2][words])


def test_of_a_call_with_guidance_the_prompts_are_read_and_not_what_it_is_led_away_from() -> None:
    pipe = made("sd")

    def call(_processor: Any, _images: Any, texts: list[str]) -> dict[str, Any]:
        return {"prompt": texts, "negative_prompt": ["a fast dog"] * len(texts), **SMALL}

    guided = Host.of(pipe, prompt=call)
    torch.testing.assert_close(read(guided, LAYER), read(Host.of(pipe), LAYER))
    prior = made("kandinsky_prior")

    def appended(_processor: Any, _images: Any, texts: list[str]) -> dict[str, Any]:
        usual = dict(PIPELINES["kandinsky_prior"].call)
        return {"prompt": texts, "negative_prompt": ["a"] * len(texts), **usual}

    with pytest.raises(
        VlmEditError, match="negative prompts pass too, or may: have the prompt function"
    ):
        read(Host.of(prior, prompt=appended), "text_encoder.text.0")


def test_the_images_of_an_ip_adapter_are_read_where_a_function_makes_the_call() -> None:
    pipe, images = made("ip_adapter"), [picture("red"), picture("blue")]

    def call(_processor: Any, images: list[Any], texts: list[str]) -> dict[str, Any]:
        return {"prompt": texts, **SMALL, "ip_adapter_image": [images]}

    site = "image_encoder.joint"
    found = collect(Host.of(pipe, prompt=call), images, site, progress=False)["image"]
    pixels = pipe.feature_extractor(images, return_tensors="pt").pixel_values
    with torch.no_grad():
        torch.testing.assert_close(found, pipe.image_encoder(pixels).image_embeds)
    with pytest.raises(VlmEditError, match=r"nothing of the prompts passes: give the function"):
        collect(pipe, images, site, progress=False)


def test_encoding_draws_nothing() -> None:
    pipe = made("sd")
    pipe.unet.register_forward_pre_hook(lambda *_: pytest.fail("the denoiser was called"))
    collect(pipe, PROMPTS, "text_encoder.text.0", progress=False)


@pytest.mark.parametrize("name", ["sd", "sd2", "sdxl", "sd3", "flux"])
def test_a_patch_of_text_edits_a_prompts_own_words(name: str) -> None:
    pipe = made(name)
    for site in of_texts(Host.of(pipe)):
        place = Host.of(pipe).site(site)
        if ".joint" in site or place.dead:
            continue
        patch = Patch(site, Dictionary.identity(place.width), Scale([0], 2.0), tokens="text")
        with patch.attach(pipe) as attached:
            PIPELINES[name].draw(pipe, PROMPTS)
        assert attached.report().edited_tokens == 2 + 6 + 1, site


@pytest.mark.parametrize("with_tokenizer", [False, True])
def test_each_encoder_goes_by_its_own_tokenizer(with_tokenizer: bool) -> None:
    pipe = made("flux")
    pipe.tokenizer.add_special_tokens({"additional_special_tokens": ["cat</w>"]})
    host = Host.of(pipe, pipe.tokenizer if with_tokenizer else None)
    assert len(read(host, "text_encoder.text.0")) == 1 + 5 + 1
    assert len(read(host, "text_encoder_2.encoder.0")) == 2 + 6 + 1


class Encodes:
    """Hold the encoder of a pipeline, and note how it is to encode."""

    def __init__(self) -> None:
        self.components = {"text_encoder": made("sd").text_encoder}
        self.asked: dict[str, Any] = {}

    def __call__(self, prompt: Any, careful: bool = True, negative_prompt: Any = "bad") -> None:
        pytest.fail(f"it was to encode, not to draw {prompt, careful, negative_prompt}")

    def encode_prompt(
        self, prompt: Any, prompt_2: Any, careful: bool = False, negative_prompt: Any = None
    ) -> None:
        self.asked = {"prompt": prompt, "prompt_2": prompt_2, "careful": careful}
        self.asked["negative_prompt"] = negative_prompt

    def needs(self, prompt: Any, lyrics: Any) -> None:
        pytest.fail(f"nobody gave the lyrics {lyrics} of {prompt}")

    def takes_none(self, text: Any = None) -> None:
        pytest.fail(f"nobody gave the text {text}")


def rules(*methods: str) -> PipelineAdapter:
    return PipelineAdapter((PipelineEncoder("text_encoder"),), methods)


def root_of(pipe: Any) -> PipelineHost:
    root = Host.of(pipe).root
    assert isinstance(root, PipelineHost)
    return root


def test_prompts_are_encoded_with_what_the_pipelines_own_call_says() -> None:
    pipe = Encodes()
    encode(root_of(pipe), rules("encode_prompt"), PROMPTS)
    nothing = {"prompt_2": None, "negative_prompt": None}
    assert pipe.asked == {"prompt": PROMPTS, "careful": True, **nothing}


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ((), "a Encodes has no method that encodes prompts: make a host of one of its models"),
        (("needs",), "Encodes.needs needs 'lyrics': make a host"),
        (("takes_none",), "Encodes.takes_none takes no 'prompt': make a host"),
    ],
)
def test_a_pipeline_that_encodes_no_prompts_alone_says_what_to_do(
    methods: tuple[str, ...], message: str
) -> None:
    pipe = Encodes()
    with pytest.raises(VlmEditError, match=message):
        encode(root_of(pipe), rules(*methods), PROMPTS)


def test_what_is_no_pipelines_adapter_draws_nothing_either() -> None:
    adapter = Adapter.of({"layer": ("text_encoder.encoder.layers.0", "text", 32)})
    with pytest.raises(VlmEditError, match="has no method that encodes prompts"):
        collect(Host.of(Encodes(), adapter=adapter), PROMPTS, "layer", progress=False)


def test_a_template_is_refused_as_a_pipelines_prompt() -> None:
    with pytest.raises(VlmEditError, match="takes its texts as they are: write it into the texts"):
        Host.of(made("sd"), prompt="a photo of {text}")
