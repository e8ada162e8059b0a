"""What a patch changes on one image, before and after."""

import pytest
import torch
from PIL import Image

from vlm_edit import Ablate, Clamp, Host, Patch, VlmEditError, zoo

HOSTILE = "<script>alert(1)</script>"


def test_a_host_that_speaks_answers_as_its_own_generate_does() -> None:
    host, dictionary = Host.of(*zoo.load_llava()), zoo.load_dictionary("language.0")
    patch = Patch("language.0", dictionary, Clamp([342, 110, 49, 501], 8.0), tokens="image")
    image, question = zoo.load_pairs().open(1), "what colour is the background?"
    compared = patch.compare(host, image, question)
    inputs = host.processor(text=[f"<image>\n{question}"], images=[image], return_tensors="pt")

    def said() -> str:
        ids = host.model.generate(**inputs, max_new_tokens=8, do_sample=False)
        new = ids[0, inputs["input_ids"].shape[1] :]
        return host.processor.tokenizer.decode(new, skip_special_tokens=True).strip()

    before = said()
    with patch.attach(host):
        after = said()
    assert compared.rows == [("answer", before, after)] and before != after
    assert "37 image" in compared.report and compared.note == ""
    assert [line.split() for line in str(compared).splitlines()[1:3]] == [
        ["before", "after"],
        ["answer", before, after],
    ]
    assert "<img " in compared._repr_html_() and before in compared._repr_html_()
    again = Patch("language.0", dictionary, Ablate([0]), tokens="image")
    assert again.compare(host, image, "what is it?").note == "The answers are equal."


def test_a_host_that_embeds_compares_labels_as_its_own_head_does() -> None:
    host, dictionary = Host.of(*zoo.load_host()), zoo.load_dictionary("joint")
    image, labels = zoo.load_pairs().open(0), ["tomato", "car", "dog face"]
    patch = Patch("joint", dictionary, Ablate(range(200)), tokens="image")
    compared = patch.compare(host, image, labels, template="a picture of {}")
    inputs = host.processor(
        text=[f"a picture of {label}" for label in labels],
        images=[image], return_tensors="pt", padding=True,
    )  # fmt: skip

    def chances() -> list[str]:
        with torch.no_grad():
            logits = host.model(**inputs).logits_per_image[0]
        return [f"{chance:.1%}" for chance in logits.softmax(0).tolist()]

    before = chances()
    with patch.attach(host):
        after = chances()
    assert compared.rows == list(zip(labels, before, after, strict=True)) and before != after


def test_a_pipeline_draws_both_from_one_noise() -> None:
    pipe = zoo.load_unclip()
    pipe.set_progress_bar_config(disable=True)
    patch = Patch("clip.joint", zoo.load_dictionary("joint"), Ablate(range(300)))
    host = Host.of(pipe)
    compared = patch.compare(host, None, "a picture of dog face", steps=2, seed=3)
    generator = torch.Generator().manual_seed(3)
    alone = pipe(prompt="a picture of dog face", num_inference_steps=2, generator=generator)
    before, after = compared.pictures
    assert before.tobytes() == alone.images[0].tobytes() != after.tobytes()
    assert compared._repr_html_().count("<img ") == 2


def test_the_host_is_itself_afterwards_and_nothing_asked_becomes_code(tmp_path) -> None:
    host, dictionary = Host.of(*zoo.load_host()), zoo.load_dictionary("joint")
    patch = Patch("joint", dictionary, Ablate([3]))
    Image.new("RGB", (40, 20), "red").save(tmp_path / "red.png")
    compared = patch.compare(host, tmp_path / "red.png", [HOSTILE, "car"])
    assert "<script" not in compared._repr_html_()
    assert not any(module._forward_hooks for module in host.model.modules())


@pytest.mark.parametrize(
    ("image", "question", "told"),
    [
        (None, ["a", "b"], "compare needs an image to ask about"),
        ("nowhere.png", ["a", "b"], "nowhere.png"),
        (Image.new("RGB", (8, 8)), "what is it?", "compares labels: give a list of two or more"),
        (Image.new("RGB", (8, 8)), ["a"], "two or more"),
    ],
)
def test_what_a_host_cannot_be_asked_is_refused(image, question, told) -> None:
    patch = Patch("joint", zoo.load_dictionary("joint"), Ablate([3]))
    with pytest.raises(VlmEditError, match=told):
        patch.compare(Host.of(*zoo.load_host()), image, question)
