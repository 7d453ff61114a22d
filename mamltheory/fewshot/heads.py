"""The classifiers that are fitted on the support features of a task (Section 6, Appendix E)."""

import warnings
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from mamltheory.errors import ConfigurationError, ShapeError, ValueRangeError

Head = Literal["logistic", "svc", "svc-scaled", "nearest-centroid"]
SMALLEST_NORM = 1e-12


@runtime_checkable
class Classifier(Protocol):
    """The methods of scikit-learn that a head has; after the fit it also has the attribute ``classes_``."""

    def fit(self, support: np.ndarray, labels: np.ndarray) -> Any:
        """Fit to n×d features and n labels."""

    def predict(self, query: np.ndarray) -> np.ndarray:
        """The labels of m×d features."""


def unit_norm(features: np.ndarray) -> np.ndarray:
    """Rows of length 1 in float64 (a zero row stays zero); raises ValueRangeError for NaN or infinite features."""
    if not np.isfinite(features).all():
        raise ValueRangeError(
            "the network's features contain NaN or infinite entries: its training diverged, use an earlier "
            "state"
        )
    features = features.astype(np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), SMALLEST_NORM)


def make_head(head: Head, C: float = 1.0) -> Classifier:
    """Return an unfitted classifier.

    - "logistic": multinomial logistic regression with ℓ2 penalty 1/C.
    - "svc": linear SVC on the features as they are. The paper's C of 0.2 to 0.75 only has an effect here.
    - "svc-scaled": the same after scaling every feature to variance 1, as in the released code. It is nearly always
      in the hard-margin regime, where C hardly matters.
    - "nearest-centroid": the nearest mean feature; C has no meaning.

    Args:
        head: one of these names.
        C: inverse of the ℓ2 penalty.

    Raises:
        ConfigurationError: another name, or a C that is not positive and finite.
    """
    if head not in get_args(Head):
        raise ConfigurationError(f"head is {head!r}: expected one of {', '.join(get_args(Head))}")
    if not 0 < C < np.inf:
        raise ConfigurationError(f"C is {C}: the inverse of the ℓ2 penalty must be positive and finite")
    if head == "logistic":
        return LogisticRegression(C=C, max_iter=1000)
    if head == "nearest-centroid":
        return _NearestCentroid()
    classifier = SVC(C=C, kernel="linear")
    return make_pipeline(StandardScaler(), classifier) if head == "svc-scaled" else classifier


class _NearestCentroid:
    """The class whose mean is nearest; scikit-learn's version divides by zero for one sample per class."""

    def fit(self, support: np.ndarray, labels: np.ndarray) -> "_NearestCentroid":
        self.classes_ = np.unique(labels)
        self.centroids = np.stack([support[labels == label].mean(0) for label in self.classes_])
        return self

    def closeness(self, query: np.ndarray) -> np.ndarray:
        # −|q − c|² without the term |q|², which is the same for every class.
        return 2 * query @ self.centroids.T - (self.centroids**2).sum(1)

    def predict(self, query: np.ndarray) -> np.ndarray:
        return self.classes_[self.closeness(query).argmax(1)]


def fit_predict(
    head: Head, C: float, support: np.ndarray, labels: np.ndarray, query: np.ndarray
) -> tuple[np.ndarray, bool]:
    """Fit a head and predict the labels of the query features.

    Args:
        head: name of the classifier.
        C: inverse of the ℓ2 penalty.
        support: features n×d, already scaled (see :func:`unit_norm`).
        labels: n labels.
        query: features m×d, already scaled.

    Returns:
        The labels of the queries, and whether the fit converged. The second value replaces the ConvergenceWarning
        of scikit-learn, so that the caller can count; other warnings pass.
    """
    classifier, converged = _fitted(head, C, support, labels, query)
    return classifier.predict(query), converged


def fit_confidence(
    head: Head, C: float, support: np.ndarray, labels: np.ndarray, query: np.ndarray
) -> tuple[np.ndarray, np.ndarray, bool]:
    """As :func:`fit_predict`, and how sure the head is of each prediction.

    "logistic": the probability of the predicted class. The SVCs: its smallest decision value against another class,
    where 1 is the margin and a negative value means that the vote of the pairs overruled one of them.
    "nearest-centroid": the squared distance to the second nearest centroid minus that to the nearest.

    Args:
        head: name of the classifier.
        C: inverse of the ℓ2 penalty.
        support: features n×d, already scaled.
        labels: n labels.
        query: features m×d, already scaled.

    Returns:
        The labels of the queries, the confidence of each, and whether the fit converged.
    """
    classifier, converged = _fitted(head, C, support, labels, query)
    predictions = classifier.predict(query)
    chosen = np.searchsorted(classifier.classes_, predictions)
    if head == "logistic":
        confidence = classifier.predict_proba(query)[np.arange(len(query)), chosen]
    elif head == "nearest-centroid":
        ordered = np.sort(classifier.closeness(query), axis=1)
        confidence = ordered[:, -1] - ordered[:, -2]
    else:
        against = _pairwise_decisions(classifier, query)
        confidence = against[np.arange(len(query)), chosen].min(1)
    return predictions, confidence, converged


def _pairwise_decisions(classifier: Any, query: np.ndarray) -> np.ndarray:
    """Entry (q, i, j): the decision value of query q for class i against class j; ∞ for i = j."""
    svc = classifier if isinstance(classifier, SVC) else classifier[-1]
    svc.decision_function_shape = "ovo"
    values, ways = classifier.decision_function(query), len(classifier.classes_)
    # With two classes the sign of scikit-learn is for the second one, with more for the first of a pair.
    columns = -values[:, None] if ways == 2 else values
    decisions = np.full((len(query), ways, ways), np.inf)
    first, second = np.triu_indices(ways, 1)
    decisions[:, first, second], decisions[:, second, first] = columns, -columns
    return decisions


def _fitted(
    head: Head, C: float, support: np.ndarray, labels: np.ndarray, query: np.ndarray
) -> tuple[Any, bool]:
    if support.ndim != 2 or len(support) != len(labels) or support.shape[1:] != query.shape[1:]:
        raise ShapeError(
            f"support {support.shape}, labels {labels.shape} and query {query.shape} do not fit: expected "
            "n×d, n and m×d"
        )
    classifier = make_head(head, C)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        classifier.fit(support, labels)
    converged = True
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            converged = False
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return classifier, converged
