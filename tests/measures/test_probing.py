import numpy as np
import pytest
import torch
from scipy.stats import f_oneway
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from vlm_edit.ground.errors import VlmEditError
from vlm_edit.measures.probing import hits, probe, variance_explained


def test_a_probe_agrees_with_sklearn_on_the_same_folds() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(120, 7, generator=generator)
    truth = (values[:, 0] + 0.8 * torch.randn(120, generator=generator) > 0).long()
    truth += 2 * (values[:, 1] > 0.5).long()
    found = probe(values, [f"label {t}" for t in truth.tolist()], folds=4, ridge=0.05, seed=3)
    expected = np.zeros(120, dtype=bool)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(3))
    for test in order.chunk(4):
        train = np.setdiff1d(np.arange(120), test.numpy())
        scaler = StandardScaler().fit(values[train].numpy())
        # The probe divides by the unbiased deviation.
        shrink = np.sqrt((len(train) - 1) / len(train))
        x = scaler.transform(values[train].numpy()) * shrink
        target = np.eye(4)[truth[train].numpy()]
        model = Ridge(alpha=0.05 * len(train)).fit(x, target)
        scores = model.predict(scaler.transform(values[test].numpy()) * shrink)
        expected[test.numpy()] = scores.argmax(1) == truth[test].numpy()
    assert found.tolist() == expected.tolist()


def test_a_probe_reads_nothing_from_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(600, 20, generator=generator)
    labels = [str(n) for n in torch.randint(4, (600,), generator=generator).tolist()]
    assert 0.18 < float(probe(values, labels).double().mean()) < 0.32


def test_a_constant_column_does_not_disturb_a_probe() -> None:
    values = torch.tensor([[0.0, 5.0], [1.0, 5.0]] * 10)
    assert bool(probe(values, ["a", "b"] * 10).all())


@pytest.mark.parametrize(
    ("count", "labels"), [(10, ["a"] * 10), (3, ["a", "b", "a"]), (10, ["a", "b"])]
)
def test_a_probe_without_enough_to_go_on_is_refused(count: int, labels: list[str]) -> None:
    with pytest.raises(VlmEditError, match="a probe needs a label per case"):
        probe(torch.randn(count, 2), labels)


@pytest.mark.parametrize("chunk", [1024, 7])
def test_hits_equal_a_search_by_hand(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm_edit.measures.probing._CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(30, 6, generator=generator)
    keys = torch.randn(40, 6, generator=generator)
    ours, theirs = ([str(n) for n in torch.randint(12, (size,), generator=generator).tolist()]
                    for size in (30, 40))  # fmt: skip
    for k in (1, 5, 100):
        found = hits(queries, keys, ours, theirs, k)
        for i in range(30):
            cosines = [float(queries[i] @ key / (queries[i].norm() * key.norm())) for key in keys]
            nearest = np.argsort(cosines)[::-1][:k]
            assert bool(found[i]) == any(theirs[j] == ours[i] for j in nearest)


def test_collapsed_or_broken_embeddings_hit_nothing() -> None:
    names = list("abcd")
    assert not bool(hits(torch.ones(4, 3), torch.ones(4, 3), names, names).any())
    assert not bool(hits(torch.zeros(4, 3), torch.ones(4, 3), names, names, k=3).any())
    assert not bool(hits(torch.full((4, 3), torch.nan), torch.ones(4, 3), names, names).any())


def test_a_query_without_a_key_of_its_label_hits_nothing() -> None:
    assert not bool(hits(torch.ones(1, 2), torch.ones(3, 2), ["a"], ["b", "c", "d"], k=3))


def test_labels_that_do_not_match_their_embeddings_in_number_are_refused() -> None:
    with pytest.raises(VlmEditError, match="3 queries and 2 keys need a label each, got 3 and 1"):
        hits(torch.ones(3, 2), torch.ones(2, 2), ["a"] * 3, ["a"])


def test_variance_explained_is_eta_squared_of_an_analysis_of_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(90, 3, generator=generator)
    labels = ["x"] * 20 + ["y"] * 30 + ["z"] * 40
    values[:20, 1] += 2
    found = variance_explained(values, labels)
    for column in range(3):
        groups = [values[:20, column], values[20:50, column], values[50:, column]]
        f = f_oneway(*(group.double().numpy() for group in groups)).statistic
        eta = f * 2 / (f * 2 + 87)
        assert float(found[column]) == pytest.approx(eta, rel=1e-9)


def test_a_silent_column_has_no_variance_to_explain() -> None:
    assert variance_explained(torch.zeros(4, 1), ["a", "a", "b", "b"]).tolist() == [0.0]
