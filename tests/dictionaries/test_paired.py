"""A dictionary for each stream: codes, matching, training, files, and edits."""

import itertools
import json
from dataclasses import replace

import pytest
import torch

from vlm_edit import (
    Ablate,
    Dictionary,
    Host,
    Patch,
    Steer,
    VlmEditError,
    load_dictionary,
    load_patch,
    measure,
    zoo,
)
from vlm_edit.dictionaries import (
    Encoder,
    PairedDictionary,
    TrainConfig,
    Transcoder,
    match_dictionaries,
    save_saelens,
    train_dictionary,
    train_paired,
)
from vlm_edit.dictionaries import matching as module
from vlm_edit.ground.modality import Mixed
from vlm_edit.measuring import collect

D, M = 5, 6


def half(seed, activation="relu", centers=(), info=None):
    g = torch.Generator().manual_seed(seed)
    bias = torch.randn(D, generator=g)
    encoder = Encoder(
        torch.randn(D, M, generator=g),
        torch.randn(M, generator=g),
        activation,
        k=2 if activation == "topk" else None,
        subtract=bias,
        centers={stream: torch.randn(D, generator=g) for stream in centers},
    )
    return Dictionary(encoder, torch.randn(M, D, generator=g), bias, info or {})


@pytest.fixture
def paired():
    return PairedDictionary(half(0, centers=["image"]), half(1, centers=["text"]))


@pytest.fixture
def streams():
    g = torch.Generator().manual_seed(9)
    return {stream: torch.randn(40, D, generator=g) for stream in ("image", "text")}


def test_each_stream_has_its_own_codes(paired, streams):
    for stream, x in streams.items():
        own = getattr(paired, stream)
        assert torch.equal(paired.encode(x, stream), own.encode(x, stream))
        assert torch.equal(paired.encode_sparse(x, stream).dense(), own.encode(x, stream))
        codes = own.encode(x, stream)
        assert torch.equal(paired.decode(codes, stream), own.decode(codes))
        assert torch.equal(paired.normalise(x, stream), own.normalise(x))
        assert paired.check(x, stream, warn=False) == own.check(x, stream, warn=False)


def test_of_a_mixed_stream_each_token_has_its_own_streams_codes(paired, streams):
    x, image = streams["image"].view(8, 5, D), torch.arange(40).view(8, 5) % 3 == 0
    codes = paired.encode(x, Mixed.of(image=image))
    assert torch.equal(codes[image], paired.image.encode(x, "image")[image])
    assert torch.equal(codes[~image], paired.text.encode(x, "text")[~image])
    with pytest.raises(VlmEditError, match="the stream here is 'mixed'"):
        paired.encode(x, "mixed")


def test_without_a_stream_nothing_is_encoded(paired, streams):
    for stream in (None, "vision"):
        with pytest.raises(VlmEditError, match="pass stream='image' or stream='text'"):
            paired.encode(streams["image"], stream)


def test_two_that_do_not_belong_together_are_refused():
    with pytest.raises(VlmEditError, match="image has 6 of width 5, text 3 of 3"):
        PairedDictionary(half(0), Dictionary.identity(3))
    for key in ("model_name", "site"):
        with pytest.raises(VlmEditError, match=f"{key} of image is 'a', of text 'b'"):
            PairedDictionary(half(0, info={key: "a"}), half(1, info={key: "b"}))


def test_either_ones_origin_is_held():
    known, unknown = half(0, info={"site": "joint"}), half(1)
    for both in (PairedDictionary(known, unknown), PairedDictionary(unknown, known)):
        assert both.info == {"site": "joint"}
        both.expect_site("joint")
        with pytest.raises(VlmEditError, match="trained at site 'joint'"):
            both.expect_site("vision.2")


def test_where_the_two_tell_different_things_the_images_is_told():
    image, text = half(0, info={"run": "a", "site": "joint"}), half(1, info={"run": "b", "k": "8"})
    assert PairedDictionary(image, text).info == {"run": "a", "site": "joint", "k": "8"}


def test_its_digest_tells_both_and_their_sides(paired):
    turned = PairedDictionary(half(1, centers=["text"]), half(0, centers=["image"]))
    other = PairedDictionary(paired.image, half(2, centers=["text"]))
    assert len({paired.digest(), turned.digest(), other.digest()}) == 3
    same = PairedDictionary(half(0, centers=["image"]), half(1, centers=["text"]))
    assert same.digest() == paired.digest()
    assert set(paired.summary()) == {"image", "text"}


def brute_force(similarity):
    """The best of all orders."""
    orders = list(itertools.permutations(range(len(similarity))))
    sums = [sum(float(similarity[i, j]) for i, j in enumerate(order)) for order in orders]
    return list(orders[max(range(len(orders)), key=sums.__getitem__)])


def test_matching_finds_the_best_of_all_orders(streams, monkeypatch):
    monkeypatch.setattr(module, "_ROWS", 7)  # the last cut is shorter
    image, text = half(0), half(1)
    codes = [image.encode(streams["image"]), text.encode(streams["text"])]
    numbers = torch.corrcoef(torch.cat(codes, 1).T)[:M, M:].nan_to_num()
    found = match_dictionaries(image, text, streams)
    expected = text.reordered(brute_force(numbers))
    assert torch.equal(found.text.decoder, expected.decoder)
    x = streams["text"]
    assert torch.equal(found.encode(x, "text"), expected.encode(x))

    rows = [torch.nn.functional.normalize(d.decoder, dim=1) for d in (image, text)]
    found = match_dictionaries(image, text, by="decoder")
    assert torch.equal(found.text.decoder, text.decoder[brute_force(rows[0] @ rows[1].T)])


def test_a_feature_that_never_changes_is_matched_to_what_is_left(streams):
    one = half(0)
    bias = one.encoder.bias.clone()
    bias[2] = -100.0
    dead = replace(one, encoder=replace(one.encoder, bias=bias))
    both = {"image": streams["image"], "text": streams["image"]}
    found = match_dictionaries(dead, dead.reordered([5, 4, 3, 2, 1, 0]), both)
    assert torch.equal(found.text.decoder, dead.decoder)


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        (None, {}, "takes activations of pairs"),
        ({"image": torch.ones(3, D)}, {}, "takes activations of pairs"),
        ({"image": torch.ones(3, D), "text": torch.ones(4, D)}, {}, "takes activations of pairs"),
        ({"image": torch.ones(1, D), "text": torch.ones(1, D)}, {}, "at least 2 pairs, got 1"),
        (None, {"by": "cosine"}, "by is 'cosine'"),
    ],
)
def test_what_cannot_be_matched_is_refused(given, options, said):
    with pytest.raises(VlmEditError, match=said):
        match_dictionaries(half(0), half(1), given, **options)


def test_an_order_names_every_feature_once():
    with pytest.raises(VlmEditError, match="each of 6 features once"):
        half(0).reordered([0, 1, 2, 3, 4, 4])
    grouped = Encoder(torch.ones(D, M), torch.zeros(M), "groupmax", k=2)
    with pytest.raises(VlmEditError, match="groupmax compete with their neighbours"):
        Dictionary(grouped, torch.ones(M, D), torch.zeros(D)).reordered(range(M))


def test_a_reordered_dictionary_gives_reordered_codes(streams):
    for activation in ("relu", "topk"):
        one, order = half(3, activation), [3, 0, 5, 1, 4, 2]
        x = streams["image"]
        torch.testing.assert_close(one.reordered(order).encode(x), one.encode(x)[:, order])
        assert torch.equal(one.reordered(order).decoder, one.decoder[order])


def planted(seed, n=3000, d=12):
    """Streams with the same eight concepts along other directions of each."""
    g = torch.Generator().manual_seed(seed)
    active = (torch.rand(n, 8, generator=g) < 0.15) * (0.5 + torch.rand(n, 8, generator=g))
    made = {}
    for stream in ("image", "text"):
        basis, _ = torch.linalg.qr(torch.randn(d, d, generator=g))
        made[stream] = active @ basis[:8] + 0.01 * torch.randn(n, d, generator=g)
    return active, made


@pytest.mark.slow
def test_separate_dictionaries_of_one_set_of_concepts_are_matched_by_concept():
    active, made = planted(0)
    config = TrainConfig(n_features=8, k=2, steps=800, batch_size=256, lr=3e-3, center=False)
    found = train_paired(made, config, progress=False)
    both = [
        torch.corrcoef(torch.cat([active, found.encode(x, stream)], 1).T)[:8, 8:].nan_to_num()
        for stream, x in made.items()
    ]
    strong = torch.stack([found.amax(0) > 0.9 for found in both]).all(0)  # of one concept
    assert strong.sum() >= 5
    assert torch.equal(both[0].argmax(0)[strong], both[1].argmax(0)[strong])


def test_each_half_is_what_it_would_be_alone(tmp_path):
    _, made = planted(1, n=300)
    config = TrainConfig(n_features=8, k=2, steps=30, batch_size=64)
    options = {"checkpoint": tmp_path / "state", "log": tmp_path / "log"}
    found = train_paired(made, config, {"site": "joint"}, progress=False, **options)
    alone = train_dictionary({"image": made["image"]}, config, progress=False)
    assert torch.equal(found.image.decoder, alone.decoder)
    other = train_dictionary(
        {"text": made["text"]}, TrainConfig(8, 2, 30, 64, seed=1), progress=False
    )
    assert torch.equal(found.text.decoder.sort(0).values, other.decoder.sort(0).values)
    assert found.info == {"site": "joint"}
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"state.image", "state.text", "log.image", "log.text"}
    again = train_paired(made, config, progress=False, **options)  # ends at once
    assert torch.equal(again.text.decoder, found.text.decoder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"group": 0.1}, "couple the streams"),
        ({"mask": 0.1}, "couple the streams"),
    ],
)
def test_a_config_that_couples_the_streams_is_refused(change, said, streams):
    with pytest.raises(VlmEditError, match=said):
        train_paired(streams, TrainConfig(8, 2, 10, 16, **change), progress=False)


def test_streams_that_are_no_pairs_are_refused_before_anything_is_trained(streams):
    config = TrainConfig(8, 2, 10**9, 16)
    with pytest.raises(VlmEditError, match=r"takes 'image' and 'text', got \['image'\]"):
        train_paired({"image": streams["image"]}, config, progress=False)
    uneven = {"image": streams["image"], "text": streams["text"][:7]}
    with pytest.raises(VlmEditError, match="40 of image and 7 of text: use by='decoder'"):
        train_paired(uneven, config, progress=False)


def test_it_is_saved_as_two_folders_and_read_back(paired, tmp_path, streams):
    save_saelens(paired, tmp_path)
    for lazy in (False, True):
        back = load_dictionary(tmp_path, lazy=lazy)
        assert isinstance(back, PairedDictionary)
        assert back.digest() == paired.digest()
        for stream, x in streams.items():
            torch.testing.assert_close(back.encode(x, stream), paired.encode(x, stream))
    assert isinstance(load_dictionary(tmp_path, file="text"), Dictionary)
    assert isinstance(load_dictionary(tmp_path, lazy=True).load().image, Dictionary)


def test_nothing_is_written_of_a_pair_that_cannot_be_saved(tmp_path):
    grouped = Encoder(torch.ones(D, M), torch.zeros(M), "groupmax", k=2)
    other = Dictionary(grouped, torch.ones(M, D), torch.zeros(D))
    with pytest.raises(VlmEditError, match="no architecture for activation 'groupmax'"):
        save_saelens(PairedDictionary(half(0), other), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_half_is_named(paired, tmp_path):
    save_saelens(paired, tmp_path)
    (tmp_path / "text" / "cfg.json").write_text("{")
    with pytest.raises(VlmEditError, match=r"text.*not valid JSON"):
        load_dictionary(tmp_path)
    config = json.loads((tmp_path / "image" / "cfg.json").read_text())
    (tmp_path / "text" / "cfg.json").write_text(json.dumps(config))
    assert load_dictionary(tmp_path).n_features == M


@pytest.fixture(scope="module")
def zoo_host():
    return zoo.load_host()


@pytest.fixture(scope="module")
def zoo_pair():
    """The zoo's dictionary for images, and for text its features moved by one."""
    one = zoo.load_dictionary("joint")
    m = one.n_features
    return PairedDictionary(one, one.reordered([(i + 1) % m for i in range(m)]))


def test_a_host_is_measured_and_edited_by_a_dictionary_for_each_stream(
    zoo_host, zoo_pair, tmp_path
):
    host, processor = zoo_host
    pairs = zoo.load_pairs().select(range(32))
    found = measure(Host.of(host, processor), pairs, zoo_pair, "joint", progress=False)
    x = collect(Host.of(host, processor), pairs, "joint", progress=False)
    image, text = (zoo_pair.encode(x[stream], stream) for stream in ("image", "text"))
    assert len(found.dominance.scores) == 512
    assert found.provenance["dictionary"]["image"]["centred"] == ["image", "text"]
    one = zoo_pair.image
    assert torch.equal(text[:, 3], one.encode(x["text"], "text")[:, 4])

    feature = int((image > 0).sum(0).mul((text > 0).sum(0)).argmax())
    patch = Patch("joint", zoo_pair, [Ablate([feature])])
    patch.save(tmp_path / "patch.safetensors", host)
    inputs = processor(
        text=list(pairs.texts), images=[pairs.open(i) for i in range(32)], return_tensors="pt",
        padding=True,
    )  # fmt: skip
    plain = {s: x[s] for s in x}
    for one_patch in (patch, load_patch(tmp_path / "patch.safetensors")):
        with one_patch.attach(host), torch.no_grad():
            image_out = host.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
            text_out = host.get_text_features(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
            ).pooler_output
        rows = one.decoder
        scale = {s: v.norm(dim=1, keepdim=True) / v.shape[1] ** 0.5 for s, v in plain.items()}
        removed = image[:, [feature]] * rows[feature] * scale["image"]
        torch.testing.assert_close(image_out, plain["image"] - removed, rtol=1e-4, atol=1e-4)
        removed = text[:, [feature]] * rows[feature + 1] * scale["text"]
        torch.testing.assert_close(text_out, plain["text"] - removed, rtol=1e-4, atol=1e-4)


def test_a_patch_of_a_pair_acts_where_tokens_are_generated_on_text_alone(zoo_pair):
    pair = PairedDictionary(half(0), half(1))
    both = Patch("language.0", pair, Steer([1], 2.0))
    assert [b.selection.tokens for b in both.bindings] == ["visual", "text+special"]
    alone = Patch("language.0", pair, Steer([1], 2.0), phase="decode")
    assert [b.selection.tokens for b in alone.bindings] == ["text+special"]
    image = Patch("joint", zoo_pair, Ablate([1]), tokens="image")
    assert [b.selection.tokens for b in image.bindings] == ["image"]


def test_transcoders_make_no_pair() -> None:
    """Their codes are of another place than a pair is measured at."""
    one = Transcoder(half(0), "mlp_in", "mlp_out")
    for pair in ((one, one), (half(0), one)):
        with pytest.raises(VlmEditError, match="transcoders make no pairs"):
            PairedDictionary(*pair)
        with pytest.raises(VlmEditError, match="transcoders make no pairs"):
            match_dictionaries(*pair, by="decoder")
