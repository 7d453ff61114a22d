import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mamltheory.errors import ConfigurationError, ShapeError, ValueRangeError
from mamltheory.fewshot.heads import fit_confidence, fit_predict, make_head, unit_norm
from mamltheory.rng import numpy_generator
from tests.reference.fewshot_evaluation import predictions as plain_predictions

HEADS = ("logistic", "svc", "svc-scaled", "nearest-centroid")


def blobs(ways=5, shots=5, dimension=12, spread=0.3, seed=0):
    random = numpy_generator(seed, "test blobs")
    centres = random.normal(size=(ways, dimension))
    labels = np.repeat(np.arange(ways), shots)
    return unit_norm(centres[labels] + spread * random.normal(size=(len(labels), dimension))), labels


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.floats(1e-6, 1e6), st.integers(0, 2**32))
def test_rows_have_length_one_and_their_direction(rows, columns, scale, seed):
    features = numpy_generator(seed, "rows").normal(size=(rows, columns)) * scale
    scaled = unit_norm(features)
    np.testing.assert_allclose(np.linalg.norm(scaled, axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(scaled * np.linalg.norm(features, axis=1, keepdims=True), features, rtol=1e-9)


def test_a_row_of_zeros_stays_zero_and_nan_is_refused():
    assert (unit_norm(np.zeros((2, 3))) == 0).all()
    with pytest.raises(ValueRangeError, match="diverged"):
        unit_norm(np.array([[np.nan, 1.0]]))


@pytest.mark.parametrize("head", HEADS)
def test_every_head_separates_well_separated_classes(head):
    support, labels = blobs()
    predictions, converged = fit_predict(head, 1.0, support, labels, support)
    assert (predictions == labels).all()
    assert converged


@pytest.mark.paper("Sec. 6.1: evaluation", "App. E: evaluation")
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("shots", "C"), [(1, 0.2), (5, 0.6)])
def test_every_prediction_is_that_of_a_plain_transcription(head, shots, C):
    for seed in range(3):
        support, labels = blobs(shots=shots, spread=0.7, seed=seed)
        query, _ = blobs(shots=30, spread=0.7, seed=seed)
        predictions, _ = fit_predict(head, C, support, labels, query)
        np.testing.assert_array_equal(predictions, plain_predictions(head, C, support, labels, query))


@pytest.mark.parametrize("ways", [2, 5])
@pytest.mark.parametrize("head", HEADS)
def test_confidence_belongs_to_the_prediction_and_is_high_where_the_head_is_right(head, ways):
    support, labels = blobs(ways, 5, spread=0.8)
    query, truth = blobs(ways, 40, spread=0.8)
    predictions, confidence, converged = fit_confidence(head, 1.0, support, labels, query)
    np.testing.assert_array_equal(predictions, fit_predict(head, 1.0, support, labels, query)[0])
    assert converged
    right = predictions == truth
    assert 0.5 < right.mean() < 1
    assert confidence[right].mean() > confidence[~right].mean()
    if head == "logistic":
        assert (confidence >= 1 / ways).all()
        assert (confidence <= 1).all()
    elif head == "nearest-centroid":
        centroids = np.array([support[labels == label].mean(0) for label in range(ways)])
        distances = np.sort(((query[:, None] - centroids) ** 2).sum(2), axis=1)
        np.testing.assert_allclose(confidence, distances[:, 1] - distances[:, 0], atol=1e-12)


@pytest.mark.parametrize("ways", [2, 4])
def test_the_margin_of_the_svc_is_its_least_decision_value_of_a_pair(ways):
    support, labels = blobs(ways, 5, spread=0.8)
    query, _ = blobs(ways, 20, spread=0.8)
    predictions, confidence, _ = fit_confidence("svc", 0.7, support, labels, query)
    for x, label, sure in zip(query, predictions, confidence, strict=True):
        values = []
        for other in set(range(ways)) - {label}:
            pair = (labels == label) | (labels == other)
            machine = make_head("svc", 0.7).fit(support[pair], labels[pair] == label)
            values.append(machine.decision_function(x[None])[0])
        assert sure == pytest.approx(min(values), abs=2e-3)  # libsvm stops at a tolerance of 1e-3


def test_a_small_C_makes_the_plain_svc_a_nearest_mean_rule_and_leaves_the_scaled_one_alone():
    support, labels = blobs(shots=1, spread=0)
    copies, many = np.tile(support, (5, 1)), np.tile(labels, 5)
    queries, _ = blobs(shots=40, spread=0.8)
    plain = [fit_predict("svc", C, copies, many, queries)[0] for C in (0.01, 0.2)]
    nearest = ((queries[:, None] - support) ** 2).sum(2).argmin(1)
    assert (plain[0] == nearest).mean() > 0.97
    assert (plain[0] == plain[1]).all()
    scaled = [fit_predict("svc-scaled", C, copies, many, queries)[0] for C in (0.2, 1.0)]
    assert (scaled[0] == scaled[1]).all()


def test_only_the_scaled_svc_is_indifferent_to_the_unit_of_a_feature():
    support, labels = blobs(shots=3, spread=0.9)
    queries, _ = blobs(shots=60, spread=0.9)
    units = np.where(np.arange(12) < 3, 30.0, 1.0)
    for head, indifferent in (("svc-scaled", True), ("svc", False)):
        one = fit_predict(head, 1.0, support, labels, queries)[0]
        other = fit_predict(head, 1.0, support * units, labels, queries * units)[0]
        assert (one == other).all() == indifferent


def test_C_is_used_by_the_heads_that_have_one():
    support, labels = blobs(shots=3, spread=0.9)
    queries, _ = blobs(shots=60, spread=0.9)
    for head in ("logistic", "svc"):
        one, two = (fit_predict(head, C, support, labels, queries)[0] for C in (1e-2, 1e3))
        assert (one != two).any()


def test_a_fit_that_runs_out_of_iterations_is_reported_and_does_not_warn(monkeypatch):
    support, labels = blobs(spread=2.0)
    monkeypatch.setattr("mamltheory.fewshot.heads.make_head", lambda *_: _short_of_iterations())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictions, converged = fit_predict("logistic", 1e6, support, labels, support)
    assert not converged
    assert len(predictions) == len(labels)


def _short_of_iterations():
    return make_head("logistic", 1e6).set_params(max_iter=2)


def test_other_warnings_of_a_head_are_passed_on(monkeypatch):
    class Warns:
        def fit(self, *_):
            warnings.warn("look here", UserWarning, stacklevel=1)
            return self

        def predict(self, query):
            return np.zeros(len(query))

    monkeypatch.setattr("mamltheory.fewshot.heads.make_head", lambda *_: Warns())
    with pytest.warns(UserWarning, match="look here"):
        fit_predict("svc", 1.0, *blobs(), blobs()[0])


def test_unknown_heads_bad_penalties_and_shapes_are_refused():
    with pytest.raises(ConfigurationError, match="positive"):
        make_head("svc", 0.0)
    with pytest.raises(ShapeError, match="do not fit"):
        fit_predict("svc", 1.0, np.zeros((4, 3)), np.zeros(3), np.zeros((2, 3)))
