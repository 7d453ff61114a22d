"""Verdicts on the theorems from measurements over widths and seeds: slopes with intervals, and bounds that hold.

A quantity that the theory sends to zero as l^(−1/2) falls where the whole interval of its slope lies below FALLS. It
does not where the interval lies above FALLS, or excludes −1/2 and reaches zero. A quantity that the theory bounds stays
where the interval lies below STAYS, and does not where it lies above. Any other interval decides nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mamltheory.finite_width.asymptotics import fit_power_law, root_mean_square
from mamltheory.finite_width.bounds import theorem3_drift_bound, theorem3_path_bound, theorem3_residual_bound

FALLS, STAYS = -0.25, 0.25
"""A slope below the first is a fall, half of the theory's −1/2; one below the second is no growth."""
EXPECTED = -0.5
"""The slope of what the theory sends to zero."""
RULE = (
    f"Rule, by the 95 % interval of a slope: where {EXPECTED:.2f} is expected, a statement holds if the interval lies "
    f"below {FALLS}, half of that, and does not hold if it lies above {FALLS}, or excludes {EXPECTED:.2f} and reaches "
    f"zero; where 0.00 is expected, it holds if the interval lies below {STAYS}, and does not hold if it lies above. "
    "Otherwise it is undecided."
)
"""The rule of the verdicts, for those who read them."""
NOTHING = 1e-12
"""What is below this at every width is zero but for rounding."""


@dataclass(frozen=True)
class Verdict:
    """What the measurements say of one statement.

    Args:
        statement: the statement of the paper.
        holds: whether it holds; None where the interval of a slope does not decide.
        text: the verdict in words, with its numbers.
    """

    statement: str
    holds: bool | None
    text: str


def verdicts_of(
    widths: Sequence[int], values: dict[str, np.ndarray], eta0: float, sigma_min: float
) -> tuple[Verdict, ...]:
    """A verdict for every statement that the measurements decide.

    Args:
        widths: the widths.
        values: as in :class:`mamltheory.finite_width.verification.Verification`.
        eta0: η0.
        sigma_min: the least eigenvalue of the limit's MetaNTK.

    Returns:
        The verdicts, in the order of the paper's argument.
    """
    residuals = values["residuals"]
    bound = theorem3_residual_bound(eta0, sigma_min, 1.0, residuals.shape[-1] - 1).numpy()
    inside = (residuals <= residuals[..., :1] * bound * (1 + 1e-9)).all(-1)
    found = [
        Verdict("Theorem 3, Eq. (31): linear rate", *bounded(widths, inside)),
        Verdict(
            "Lemma 3: one kernel for all initialisations",
            *falls(widths, values["scatter"], "the kernels differ"),
        ),
        Verdict(
            "Theorem 3, Eq. (29): path of the parameters", *falls(widths, values["path"], "they move far")
        ),
        Verdict(
            "Theorem 3, Eq. (30): change of the kernel", *falls(widths, values["drift"], "the kernel moves")
        ),
    ]
    if "K" in values:
        found += constants_of(widths, values, sigma_min)
    claim = "the regression misses the network"
    found.append(Verdict("Theorem 2: kernel regression", *falls(widths, values["deviation"], claim)))
    return tuple(found)


def constants_of(widths: Sequence[int], values: dict[str, np.ndarray], sigma_min: float) -> list[Verdict]:
    """The verdicts on K of Lemma 1 and on the bounds (29) and (30) with it; arguments as of :func:`verdicts_of`."""
    path, drift = bounds_of(widths, values, sigma_min)
    return [
        Verdict("Lemma 1: K, the Lipschitz constant of the Jacobian", *stays(widths, values["K"])),
        Verdict("Theorem 3: the path is within (29)", *bounded(widths, values["path"] <= path)),
        Verdict(
            "Theorem 3: the change of the kernel is within (30)",
            *bounded(widths, values["drift"] * values["kernel_norm"] <= drift),
        ),
    ]


def bounds_of(
    widths: Sequence[int], values: dict[str, np.ndarray], sigma_min: float
) -> tuple[np.ndarray, np.ndarray]:
    """The bounds (29) and (30) of every network with its own K and R0, widths × seeds; as :func:`verdicts_of`."""
    both = []
    for bound in (theorem3_path_bound, theorem3_drift_bound):
        rows = zip(widths, values["K"], values["residuals"][..., 0], strict=True)
        both.append(
            [[bound(k, r, sigma_min, width) for k, r in zip(ks, rs, strict=True)] for width, ks, rs in rows]
        )
    return np.array(both[0]), np.array(both[1])


def bounded(widths: Sequence[int], inside: np.ndarray) -> tuple[bool, str]:
    """From which of the ``widths`` on all networks are ``inside`` their bound (widths × seeds), and that in words."""
    inside = np.asarray(inside)
    good: np.ndarray = np.all(inside, axis=1)
    if not good[-1]:
        share = f"{int(inside[-1].sum())} of {inside.shape[1]}"
        return False, f"does not hold: {share} networks of width {widths[-1]} are within the bound"
    outside = np.flatnonzero(~good)
    if len(outside) == 0:
        return True, f"holds at all widths from {widths[0]}"
    return True, f"holds from width {widths[outside[-1] + 1]}"


def falls(widths: Sequence[int], values: np.ndarray, otherwise: str) -> tuple[bool | None, str]:
    """Whether ``values`` (widths × seeds) fall over the ``widths`` as l^(−1/2) or faster, and that in words.

    Args:
        widths: the widths.
        values: the measurements.
        otherwise: what it means if they do not.

    Returns:
        The judgement, None if the interval does not decide, and the sentence.
    """
    last = f"{root_mean_square(values)[-1]:.2g} at width {widths[-1]}"
    if float(np.max(values)) < NOTHING:
        return True, "holds: nothing but rounding at all widths"
    law = fit_power_law(widths, np.maximum(values, np.finfo(float).tiny))
    slope = f"slope {law.slope:.2f} [{law.low:.2f}, {law.high:.2f}], expected {EXPECTED:.2f}; {last}"
    if law.high < FALLS:
        return True, f"holds: {slope}"
    if law.low > FALLS or (law.low > EXPECTED and law.high >= 0):
        return False, f"does not hold, {otherwise}: {slope}"
    return None, f"undecided: {slope}; the interval contains {FALLS}, take more seeds or wider networks"


def stays(widths: Sequence[int], values: np.ndarray) -> tuple[bool | None, str]:
    """Whether ``values`` (widths × seeds) do not grow over the ``widths``; as :func:`falls`."""
    law = fit_power_law(widths, values)
    slope = f"slope {law.slope:.2f} [{law.low:.2f}, {law.high:.2f}], expected 0.00; "
    slope += f"{root_mean_square(values)[-1]:.2g} at width {widths[-1]}"
    if law.high < STAYS:
        return True, f"holds: {slope}"
    if law.low > STAYS:
        return False, f"does not hold, it grows with the width: {slope}"
    return None, f"undecided: {slope}; the interval contains {STAYS}, take more seeds or wider networks"
