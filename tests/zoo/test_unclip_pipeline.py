import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DConditionModel

from vlm_edit import zoo
from vlm_edit.ground.errors import VlmEditError
from vlm_edit.zoo.unclip import UnclipPipeline, condition

pytestmark = pytest.mark.kernels


def small_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=32, in_channels=12, out_channels=12,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), mid_block_type="UNetMidBlock2D",
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), block_out_channels=(8, 16),
        layers_per_block=1, norm_num_groups=4, attention_head_dim=8,
        class_embed_type="projection", projection_class_embeddings_input_dim=192,
        resnet_time_scale_shift="scale_shift",
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def pipe() -> UnclipPipeline:
    found = UnclipPipeline(
        small_unet(), FlowMatchEulerDiscreteScheduler(), *zoo.load_host(),
        guidance_scale=1.5, num_inference_steps=3,
    )  # fmt: skip
    found.set_progress_bar_config(disable=True)
    return found


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def drawn(pipe: UnclipPipeline, **inputs) -> torch.Tensor:
    return pipe(**inputs, generator=seeded(), output_type="pt").images


def expect_alike(found: UnclipPipeline, wanted: UnclipPipeline, **inputs) -> None:
    """Compare weights to the bit, and drawings to rounding: a file's tensors lie elsewhere."""
    for name in ("unet", "clip"):
        if (here := getattr(found, name)) is not None:
            there = getattr(wanted, name).state_dict()
            assert list(here.state_dict()) == list(there)
            assert all(torch.equal(value, there[key]) for key, value in here.state_dict().items())
    drawing, last = drawn(wanted, **inputs), found.unet.conv_out
    torch.testing.assert_close(drawn(found, **inputs), drawing, atol=1e-5, rtol=0)
    with torch.no_grad():  # a weight that is off by a hundredth would be seen
        last.weight.mul_(1.01)
        assert (drawn(found, **inputs) - drawing).abs().max() > 1e-4
        last.weight.copy_(wanted.unet.conv_out.weight)


def test_what_is_drawn_is_the_euler_path_of_the_guided_velocity(pipe):
    embeds = torch.randn(2, 192, generator=seeded())
    x = torch.randn(2, 12, 32, 32, generator=seeded())
    given = embeds / embeds.norm(dim=1, keepdim=True) * 192**0.5
    with torch.no_grad():
        for sigma in (1.0, 2 / 3, 1 / 3):
            time = torch.full((2,), 1000 * sigma)
            led = pipe.unet(x, time, None, class_labels=given).sample
            free = pipe.unet(x, time, None, class_labels=torch.zeros_like(given)).sample
            x = x - (free + 2.5 * (led - free)) / 3
    expected = (F.pixel_shuffle(x, 2) / 2 + 0.5).clamp(0, 1)
    found = drawn(pipe, embeds=embeds, guidance_scale=2.5)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert found.std() > 0.05


def test_guidance_one_is_the_embedding_alone(pipe):
    embeds = torch.randn(1, 192, generator=seeded())
    near = drawn(pipe, embeds=embeds, guidance_scale=1.0 + 1e-6)
    torch.testing.assert_close(
        drawn(pipe, embeds=embeds, guidance_scale=1.0), near, atol=1e-4, rtol=0
    )


def test_a_call_that_names_no_guidance_and_steps_takes_those_of_the_pipeline(pipe):
    embeds = torch.randn(1, 192, generator=seeded())
    named = drawn(pipe, embeds=embeds, guidance_scale=1.5, num_inference_steps=3)
    assert torch.equal(drawn(pipe, embeds=embeds), named)
    assert not torch.equal(drawn(pipe, embeds=embeds, num_inference_steps=2), named)


def test_the_length_of_an_embedding_does_not_matter(pipe):
    embeds = torch.randn(1, 192, generator=seeded())
    torch.testing.assert_close(
        drawn(pipe, embeds=7 * embeds), drawn(pipe, embeds=embeds), atol=1e-5, rtol=0
    )
    assert torch.equal(condition(torch.zeros(1, 4)), torch.zeros(1, 4))


def test_prompts_and_images_are_drawn_from_the_hosts_own_embeddings(pipe):
    model, processor = pipe.clip, pipe.processor
    texts, image = ["a picture of dog face", "ein Bild von Katze"], zoo.load_pairs().open(3)
    with torch.no_grad():
        said = processor(text=texts, return_tensors="pt", padding=True)
        said = model.get_text_features(**said).pooler_output
        seen = processor(images=image, return_tensors="pt")
        seen = model.get_image_features(**seen).pooler_output
    assert torch.equal(drawn(pipe, prompt=texts), drawn(pipe, embeds=said))
    assert torch.equal(drawn(pipe, image=image), drawn(pipe, embeds=seen))


def test_several_images_of_a_prompt_lie_together(pipe):
    embeds = torch.randn(2, 192, generator=seeded())
    noise = torch.randn(1, 12, 32, 32).expand(4, -1, -1, -1)
    found = pipe(
        embeds=embeds, num_images_per_prompt=2, latents=noise, output_type="pt"
    ).images  # fmt: skip
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=0)
    assert (found[0] - found[2]).abs().max() > 1e-4


def test_output_types_show_the_same_image(pipe):
    embeds = torch.randn(1, 192, generator=seeded())
    tensor = drawn(pipe, embeds=embeds)[0]
    (array,) = pipe(embeds=embeds, generator=seeded(), output_type="np").images
    (picture,) = pipe(embeds=embeds, generator=seeded(), return_dict=False)[0]
    assert picture.size == (64, 64)
    np.testing.assert_array_equal(array, tensor.permute(1, 2, 0).numpy())
    assert np.abs(np.asarray(picture) / 255 - array).max() <= 0.5 / 255 + 1e-6


def test_a_saved_pipeline_without_a_host_takes_one_when_it_is_loaded(pipe, tmp_path):
    alone = UnclipPipeline(pipe.unet, pipe.scheduler, guidance_scale=1.5, num_inference_steps=3)
    alone.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("clip/*")) and not list(tmp_path.glob("processor/*"))
    embeds = torch.randn(1, 192, generator=seeded())
    bare = UnclipPipeline.from_pretrained(tmp_path, local_files_only=True)
    bare.set_progress_bar_config(disable=True)
    expect_alike(bare, pipe, embeds=embeds)
    with pytest.raises(VlmEditError, match="holds no CLIP"):
        bare(prompt="dog face")
    model, processor = zoo.load_host()
    joined = UnclipPipeline.from_pretrained(
        tmp_path, clip=model, processor=processor, local_files_only=True
    )
    joined.set_progress_bar_config(disable=True)
    assert joined.clip is model
    expect_alike(joined, pipe, prompt="dog face")


def test_a_saved_pipeline_with_its_host_is_whole(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    whole = UnclipPipeline.from_pretrained(tmp_path, local_files_only=True)
    whole.set_progress_bar_config(disable=True)
    expect_alike(whole, pipe, prompt="dog face")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "got none"),
        ({"prompt": "a", "embeds": torch.zeros(1, 192)}, "prompt.*embeds"),
        ({"embeds": torch.zeros(1, 191)}, r"\[batch, 192\].*\[1, 191\]"),
        ({"embeds": torch.zeros(192)}, r"\[192\]"),
        ({"embeds": torch.zeros(1, 192), "latents": torch.zeros(2, 12, 32, 32)}, "latents"),
        ({"embeds": torch.zeros(1, 192), "output_type": "latent"}, "latent"),
        ({"embeds": torch.zeros(1, 192), "num_inference_steps": 0}, "is 0: it must be at least 1"),
    ],
)
def test_an_input_that_fits_not_is_named(pipe, inputs, message):
    with pytest.raises(VlmEditError, match=message):
        pipe(**inputs)
