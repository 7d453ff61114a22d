"""Which of the numbers to reach were reached."""

from collections.abc import Mapping

from experiments.benchmarks.cases import Case, Target

BYTES_PER_PARAMETER = 4
"""Cases are measured in float32."""
AT_MOST = ("bytes", "parameters", "agreement", "rounding", "seconds")


def value(target: Target, record: Mapping[str, object]) -> float | None:
    """What was got in a case's record; None where a peer that it takes was not measured."""
    methods = {n: m for n, m in record["methods"].items() if m["status"] == "measured"}
    if target.method not in methods:
        return None
    own = methods[target.method]
    if target.quantity == "fraction":
        return own.get("fraction")
    if target.quantity == "agreement":
        return float(own["agreement_float64"])  # records spell what is not finite as text
    if target.quantity == "rounding":
        return float(own["agreement"])
    if target.quantity == "seconds":
        return own["median_seconds"]
    if target.quantity in ("bytes", "parameters"):
        unit = 1 if target.quantity == "bytes" else BYTES_PER_PARAMETER * record["parameters"]
        return None if own["peak_bytes"] is None else own["peak_bytes"] / unit
    key = {"speed": "median_seconds", "memory": "peak_bytes"}[target.quantity]
    peers = [methods[n].get(key) for n in target.against or _peers(record) if n in methods]
    if not peers or None in peers or not own[key]:
        return None
    return min(peers) / own[key]


def _peers(record: Mapping[str, object]) -> list[str]:
    """The methods that are not ours (no float64 result is asked of them)."""
    return [name for name in record["methods"] if not name.startswith("ours")]


def judged(case: Case, record: Mapping[str, object], timed: bool = True) -> list[dict[str, object]]:
    """The case's targets in words, with what was got and whether that is enough (None: not measured).

    timed: whether seconds are those of a CPU at full size, for which alone there are bounds.
    """
    targets = [target for target in case.targets if timed or target.quantity != "seconds"]
    return [_judge(case, target, value(target, record)) for target in targets]


def _judge(case: Case, target: Target, got: float | None) -> dict[str, object]:
    enough = None
    if got is not None:
        enough = got <= target.bound if target.quantity in AT_MOST else got >= target.bound
    return {
        "case": case.name,
        "title": case.title,
        "target": words(target),
        "quantity": target.quantity,
        "bound": target.bound,
        "got": got,
        "reached": enough,
    }


def words(target: Target) -> str:
    """The target as a phrase."""
    against = " or ".join(target.against) or "the best peer"
    phrase = {
        "speed": f"at least {target.bound:g} × faster than {against}",
        "memory": f"at least {target.bound:g} × less memory than {against}",
        "fraction": f"at least {target.bound:g} of the matrix-product rate",
        "bytes": f"at most {target.bound / 1e6:g} MB",
        "parameters": f"at most {target.bound:g} × the parameters in extra memory",
        "seconds": f"at most {target.bound:.3g} CPU s",
        "rounding": f"float32 within {target.bound:g} of the slow way in float64",
        "agreement": f"float64 within {target.bound:g} of the slow way",
    }[target.quantity]
    return phrase if target.method == "ours" else f"{target.method}: {phrase}"
