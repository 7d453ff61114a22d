"""The classifiers that are fitted to the support features of a task (Section 6, Appendix E)."""

import warnings
from typing import Literal, get_args

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from mamltheory.errors import ConfigurationError, ShapeError, ValueRangeError

Head = Literal["logistic", "svc", "svc-scaled", "nearest-centroid"]
SMALLEST_NORM = 1e-12


def unit_norm(features: np.ndarray) -> np.ndarray:
    """Rows of length 1 in float64; a row of zeros stays zero instead of becoming NaN.

    Raises ValueRangeError for NaN or infinite features.
    """
    if not np.isfinite(features).all():
        raise ValueRangeError(
            "the network's features contain NaN or infinite entries: its training diverged, use an earlier "
            "state"
        )
    features = features.astype(np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), SMALLEST_NORM)


def make_head(head: Head, C: float = 1.0) -> object:
    """An unfitted classifier with the methods fit and predict of scikit-learn.

    - "logistic": multinomial logistic regression with ℓ2 penalty 1/C.
    - "svc": linear SVC on the features as they are. The paper's C of 0.2 to 0.75 only has an effect here.
    - "svc-scaled": the same after scaling every feature to variance 1, as in the released code; nearly
      always in the hard-margin regime, where C hardly matters.
    - "nearest-centroid": the nearest mean feature; C has no meaning.

    Raises ConfigurationError for another name or a C that is not positive and finite.
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
    """Predicted labels of the query features, and whether the fit converged.

    support: n×d, labels: n, query: m×d, all as they are to be used (see :func:`unit_norm`). scikit-learn's
    warning that the iterations ran out becomes the second return value, for the caller to count; other
    warnings pass.
    """
    classifier, converged = _fitted(head, C, support, labels, query)
    return classifier.predict(query), converged


def fit_confidence(
    head: Head, C: float, support: np.ndarray, labels: np.ndarray, query: np.ndarray
) -> tuple[np.ndarray, np.ndarray, bool]:
    """As :func:`fit_predict`, with how sure the head is of each prediction in between.

    "logistic": the probability of the predicted class. The SVCs: its least decision value against another
    class, where 1 is the margin and a negative value means that the vote of the pairs overruled one of them.
    "nearest-centroid": how much farther the next centroid is, as a difference of squared distances.
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


def _pairwise_decisions(classifier: object, query: np.ndarray) -> np.ndarray:
    """Entry (q, i, j): the decision value of query q for class i against class j; ∞ for i = j."""
    svc = classifier if isinstance(classifier, SVC) else classifier[-1]
    svc.decision_function_shape = "ovo"
    values, ways = classifier.decision_function(query), len(classifier.classes_)
    # With two classes scikit-learn's sign is for the second one, with more it is for the first of a pair.
    columns = -values[:, None] if ways == 2 else values
    decisions = np.full((len(query), ways, ways), np.inf)
    first, second = np.triu_indices(ways, 1)
    decisions[:, first, second], decisions[:, second, first] = columns, -columns
    return decisions


def _fitted(
    head: Head, C: float, support: np.ndarray, labels: np.ndarray, query: np.ndarray
) -> tuple[object, bool]:
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
