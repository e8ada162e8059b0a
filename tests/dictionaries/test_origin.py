"""Places and hosts that dictionaries name, against the sites and hosts that they are used at."""

import dataclasses
import warnings

import pytest
import torch

from vlm_edit import Ablate, Dictionary, Host, Patch, VlmEditError, load_patch, measure, zoo
from vlm_edit.dictionaries.origin import expect_model, expect_origin, expect_site
from vlm_edit.ground.errors import VlmEditWarning
from vlm_edit.host import other_family
from vlm_edit.patches import attach_rows

SAME = [
    ("blocks.9.hook_resid_post", "vision.9"),
    ("blocks.10.hook_resid_pre", "vision.9"),
    ("model.layers.24", "language.24"),
    ("layers.24", "language.24"),
    ("language_model.model.layers.24", "language.24"),
    ("model.language_model.layers.24", "language.24"),
    ("vision_tower.vision_model.encoder.layers.22", "vision.22"),
    ("visual.transformer.resblocks.9", "vision.9"),
    ("transformer.resblocks.9", "text.9"),
    ("text_model.encoder.layers.3", "text.3"),
    ("model.text_model.layers.3", "language.3"),
    ("encoder.layers.3.output", "vision.3"),
    ("encoder.layers.4.input", "vision.3"),
    ("resid_post_layer_12", "language.12"),
    ("resid_pre_layer_13", "language.12"),
    ("layer_12_resid_post", "language.12"),
    ("22_resid", "vision.22"),
    ("post_mlp_residual_22", "vision.22"),
    ("hidden_states.10", "vision.9"),
    ("hidden_states[10]", "vision.9"),
    ("vision.2", "vision.2"),
    ("joint", "joint"),
    ("visual_projection", "joint"),
    ("image_embeds", "joint"),
    ("layers.11", "blocks.11"),
    ("vision_language_model.layers.3", "language.3"),
]
OTHER = [
    ("blocks.9.hook_resid_post", "vision.8"),
    ("blocks.9.hook_resid_pre", "vision.9"),
    ("blocks.0.hook_resid_pre", "vision.0"),
    ("model.layers.24", "language.23"),
    ("resid_post_layer_12", "language.1"),
    ("hidden_states.9", "vision.9"),
    ("encoder.layers.3.input", "vision.3"),
    ("vision_tower.encoder.layers.9", "language.9"),
    ("language_model.model.layers.9", "vision.9"),
    ("text_model.encoder.layers.9", "vision.9"),
    ("vision.2", "vision.3"),
    ("vision.2", "text.2"),
    ("joint", "vision.2"),
    ("visual_projection", "vision.11"),
    ("blocks.9.hook_resid_post", "joint"),
    ("model.layers.24", "projector"),
    ("22_resid", "vision.21"),
    ("image_embeds", "vision.3"),
    ("post_mlp_residual_22", "vision.21"),
]
INSIDE = [
    ("blocks.9.hook_mlp_out", "mlp_out"),
    ("blocks.9.hook_resid_mid", "mid"),
    ("blocks.9.mlp.hook_in", "mlp_in"),
    ("blocks.9.mlp.hook_out", "mlp"),
    ("model.layers.9.mlp", "mlp"),
    ("model.layers.9.post_feedforward_layernorm.output", "mlp_out"),
    ("model.layers.9.pre_feedforward_layernorm.output", "mlp_in"),
]
PARTS = [
    "blocks.9.attn.hook_z",
    "blocks.9.hook_attn_out",
    "blocks.9.mlp.hook_post",
    "model.layers.9.self_attn",
    "model.layers.9.post_attention_layernorm",
    "vision_model.encoder.layers.9.layer_norm2",
    "mlp_out_layer_9",
]
UNKNOWN = ["", "resid_post", "blocks", "hook_embed", "my favourite place", "blocks.1.2", "7"]
UNKNOWN += ["layers.1.blocks.3", "layers." + "1" * 5000]


@pytest.mark.parametrize(("hook", "site"), SAME)
def test_one_place_has_many_names(hook, site):
    expect_site({"hook_name": hook}, site)


@pytest.mark.parametrize(("hook", "site"), OTHER)
def test_another_place_is_refused_by_both_names(hook, site):
    with pytest.raises(VlmEditError) as caught:
        expect_site({"hook_name": hook}, site)
    assert f"trained at {hook!r}, not at {site!r}" in str(caught.value)
    assert "dataclasses.replace(dictionary, info={}) lets it through" in str(caught.value)


@pytest.mark.parametrize(("hook", "place"), INSIDE)
def test_a_place_inside_of_a_layer_is_that_site_and_no_other(hook, place):
    for tower in ("language", "text", "vision"):
        expect_site({"hook_name": hook}, f"{tower}.9.{place}")
    wrong = (
        f"language.8.{place}",
        f"language.10.{place}",
        "language.9",
        "joint",
        "vision.9.head.0",
    )
    for site in (*wrong, "language.9.attention", f"language.{place}"):
        with pytest.raises(VlmEditError, match=rf"a site such as 'language.9.{place}', not at"):
            expect_site({"hook_name": hook}, site)


def test_a_place_inside_of_a_tower_s_layer_is_of_that_tower():
    hook = "vision_model.encoder.layers.9.mlp"
    expect_site({"hook_name": hook}, "vision.9.mlp")
    with pytest.raises(VlmEditError, match=r"such as 'vision.9.mlp', not at 'language.9.mlp'"):
        expect_site({"hook_name": hook}, "language.9.mlp")


@pytest.mark.parametrize("hook", PARTS)
def test_a_part_inside_of_a_layer_is_no_site(hook):
    for site in ("vision.9", "language.9", "joint"):
        with pytest.raises(VlmEditError, match="a part inside of a layer; site"):
            expect_site({"hook_name": hook}, site)


@pytest.mark.parametrize("hook", UNKNOWN)
def test_a_name_that_is_not_understood_is_let_through(hook):
    for site in ("vision.9", "joint", "vision.1.2", "projector"):
        expect_site({"hook_name": hook}, site)


def test_a_projector_into_the_language_is_no_joint_embedding():
    expect_site({"hook_name": "language_projection"}, "projector")
    expect_site({"hook_name": "language_projection"}, "language.0")
    with pytest.raises(VlmEditError, match="trained at 'language_projection', not at 'vision.0'"):
        expect_site({"hook_name": "language_projection"}, "vision.0")


def test_a_layers_number_alone_is_compared_with_layers():
    for site in ("vision.11", "text.11", "joint", "vision.0.11", "somewhere"):
        expect_site({"layer": "11"}, site)
    with pytest.raises(VlmEditError, match="trained at layer 11, not at 'vision.10'"):
        expect_site({"layer": "11"}, "vision.10")
    for layer in ("", "-2", "last", "1" * 5000):
        expect_site({"layer": layer}, "vision.10")
    expect_site({"layer": "8", "hook_name": "blocks.8.hook_resid_pre"}, "vision.7")
    expect_site({"layer": "8", "hook_name": "joint"}, "joint")
    with pytest.raises(VlmEditError, match="trained at 'joint', not at 'vision.8'"):
        expect_site({"layer": "8", "hook_name": "joint"}, "vision.8")
    with pytest.raises(VlmEditError, match="trained at layer 8, not at 'vision.7'"):
        expect_site({"layer": "8", "hook_name": "resid_post"}, "vision.7")


def test_our_own_sites_name_comes_first():
    expect_site({"site": "vision.9", "hook_name": "blocks.3.hook_mlp_out"}, "vision.9")
    with pytest.raises(VlmEditError, match="trained at site 'vision.9', not at 'vision.3'"):
        expect_site({"site": "vision.9", "hook_name": "blocks.3.hook_resid_post"}, "vision.3")
    expect_site({}, "vision.3")


@pytest.mark.parametrize(
    ("trained", "host"),
    [
        ("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch32"),
        ("OpenAI/CLIP-vit-base-patch32", "openai/clip-vit-base-patch32"),
        ("open-clip:laion/CLIP-ViT-B-32", "laion/CLIP-ViT-B-32"),
        ("https://huggingface.co/laion/CLIP-ViT-B-32", "laion/CLIP-ViT-B-32"),
        ("timm/vit_base_patch16_clip_224.openai", "openai/clip-vit-base-patch16"),
        ("ViT-B-16/openai", "openai/clip-vit-base-patch16"),
        ("RN50x4/openai", "openai/clip-vit-base-patch16"),
        ("emoji-clip", "openai/clip-vit-base-patch32"),
        ("openai/clip-vit-base-patch32", "/data/models/clip-vit-base-patch32"),
        ("openai/clip-vit-base-patch32", "./models/other"),
        ("openai/clip-vit-base-patch32", None),
        (None, "openai/clip-vit-base-patch32"),
        ("", ""),
    ],
)
def test_the_same_host_or_one_without_a_name_on_the_hub_passes(trained, host):
    expect_model(trained, host)


@pytest.mark.parametrize(
    ("trained", "host"),
    [
        ("openai/clip-vit-base-patch32", "openai/clip-vit-large-patch14"),
        ("llava-hf/llama3-llava-next-8b-hf", "llava-hf/llava-1.5-7b-hf"),
        ("lmms-lab/llama3-llava-next-8b", "llava-hf/llama3-llava-next-8b-hf"),
        ("open-clip:laion/CLIP-ViT-B-32", "openai/clip-vit-base-patch32"),
    ],
)
def test_another_host_of_the_hub_is_refused_by_both_names(trained, host):
    with pytest.raises(VlmEditError) as caught:
        expect_model(trained, host)
    assert f"trained on {trained!r}, and this host is {host!r}" in str(caught.value)
    assert "dataclasses.replace(dictionary, info={}) lets it through" in str(caught.value)


def test_a_folder_that_looks_like_a_name_of_the_hub_is_a_folder(tmp_path, monkeypatch):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    with pytest.raises(VlmEditError, match="this host is 'models/mine'"):
        expect_model("openai/clip", "models/mine")
    monkeypatch.chdir(tmp_path)
    expect_model("openai/clip", "models/mine")


def test_site_and_host_are_both_looked_at():
    info = {"hook_name": "model.layers.24", "model_name": "a/b"}
    expect_origin(info, "language.24", "a/b")
    with pytest.raises(VlmEditError, match="trained at 'model.layers.24', not at 'language.2'"):
        expect_origin(info, "language.2", "a/b")
    with pytest.raises(VlmEditError, match="trained on 'a/b', and this host is 'a/c'"):
        expect_origin(info, "language.24", "a/c")


@pytest.fixture
def named(clip):
    clip.config._name_or_path = "openai/clip-vit-base-patch32"
    return clip


def trained(width, **info):
    return dataclasses.replace(Dictionary.identity(width), info=info)


def test_a_patch_at_another_layer_is_refused_when_it_is_made():
    with pytest.raises(VlmEditError, match="trained at 'blocks.2.hook_resid_post', not at"):
        Patch("vision.1", trained(24, hook_name="blocks.2.hook_resid_post"), Ablate([3]))
    Patch("vision.2", trained(24, hook_name="blocks.2.hook_resid_post"), Ablate([3]))


def test_a_patch_of_another_host_is_refused_when_it_is_attached_or_saved(named, tmp_path):
    patch = Patch("vision.1", trained(24, model_name="openai/clip-vit-large"), Ablate([3]))
    message = "trained on 'openai/clip-vit-large', and this host is 'openai/clip-vit-base-patch32'"
    for attempt in (
        lambda: patch.attach(named),
        lambda: patch.check(named),
        lambda: patch.save(tmp_path / "patch.safetensors", named),
        lambda: attach_rows(named, [patch]),
        lambda: (Patch("vision.0", trained(24), Ablate([3])) + patch).attach(named),
    ):
        with pytest.raises(VlmEditError, match=message):
            attempt()
    patch.attach(named, check_host=False).remove()


def test_a_patch_of_this_host_passes_and_so_does_one_that_says_nothing(named, tmp_path):
    for info in ({"model_name": "OpenAI/clip-vit-base-patch32"}, {"model_name": "mine"}, {}):
        patch = Patch("vision.1", trained(24, **info), Ablate([3]))
        patch.attach(named).remove()
        patch.save(tmp_path / "patch.safetensors", named)
        load_patch(tmp_path / "patch.safetensors").attach(named).remove()


def test_the_mend_that_the_message_names_lets_it_through(named):
    other = trained(24, model_name="a/b", hook_name="blocks.2.hook_resid_post")
    freed = dataclasses.replace(other, info={})
    Patch("vision.1", freed, Ablate([3])).attach(named).remove()


def test_measuring_with_another_hosts_or_layers_dictionary_is_refused():
    host, processor = zoo.load_host()
    pairs, dictionary = zoo.load_pairs().select(range(4)), zoo.load_dictionary("joint")
    host.config._name_or_path = "openai/clip-vit-base-patch32"

    def run(**info):
        with_info = dataclasses.replace(dictionary, info=info)
        return measure(Host.of(host, processor), pairs, with_info, progress=False)

    with pytest.raises(VlmEditError, match="trained on 'a/b', and this host is 'openai/clip"):
        run(model_name="a/b")
    with pytest.raises(VlmEditError, match="trained at 'model.layers.3', not at 'joint'"):
        run(hook_name="model.layers.3")
    assert run(model_name="openai/CLIP-ViT-base-patch32", hook_name="joint") is not None


def test_the_bundled_dictionaries_work_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for load, site in (
        (zoo.load_host, "joint"),
        (zoo.load_host, "vision.2"),
        (zoo.load_llava, "vision.2"),
        (zoo.load_llava, "language.1"),
    ):
        host, _ = load()
        dictionary = zoo.load_dictionary(site)
        Patch(site, dictionary, Ablate([3])).attach(host).remove()
        host.config._name_or_path = "someone/emoji"
        Patch(site, dictionary, Ablate([3])).attach(host).remove()


def test_hosts_that_no_library_loaded_have_no_name():
    from vlm_edit import Adapter

    host = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    adapter = Adapter.of({"hidden": ("0", "image", 4)})
    Patch("hidden", trained(4, model_name="a/b"), Ablate([1])).attach(
        Host.of(host, adapter=adapter)
    ).remove()


def test_a_dictionary_of_another_family_is_warned_of_wherever_it_is_used(tmp_path):
    host, pairs = zoo.load_host()[0], zoo.load_pairs().select(range(4))
    processor = zoo.load_host()[1]
    named = dataclasses.replace(
        zoo.load_dictionary("joint"), info={"model_name": "/data/Qwen2.5-VL-7B-Instruct"}
    )
    told = r"trained on '/data/Qwen2.5-VL-7B-Instruct' \(qwen2_5_vl\), .*family \(clip\).*info={}"
    with pytest.warns(VlmEditWarning, match=told):
        measure(Host.of(host, processor), pairs, named, progress=False)
    with pytest.warns(VlmEditWarning, match=told):
        Patch("joint", named, Ablate([1])).attach(host).remove()
    with pytest.warns(VlmEditWarning, match=told):
        Patch("joint", named, Ablate([1])).save(tmp_path / "patch.safetensors", host)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("clip-of-mine", "a-model", "Llama-3", None):
            info = {} if name is None else {"model_name": name}
            own = dataclasses.replace(named, info=info)
            Patch("joint", own, Ablate([1])).attach(host).remove()


def test_what_a_host_is_made_of_is_its_family_too(llava):
    for name in ("openai/clip-vit-large-patch14-336", "llava-v1.6-vicuna-7b", "x/LLaVA-NeXT"):
        assert other_family(llava, name) is None
    assert other_family(llava, "google/gemma-3-4b-it") == ("gemma3", "llava")
    assert other_family(llava, "google/paligemma-3b") == ("paligemma", "llava")
    assert other_family(torch.nn.Linear(1, 1), "google/gemma-3-4b-it") is None


def test_names_of_the_hub_are_refused_and_not_warned_of_besides():
    with warnings.catch_warnings(), pytest.raises(VlmEditError, match="features differ"):
        warnings.simplefilter("error")
        expect_model("a/qwen2-vl", "b/llava", ("qwen2_vl", "llava"))
