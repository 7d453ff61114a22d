"""All cases and groups by name."""

from collections.abc import Sequence

from ..requirements import require
from . import cell_scores, kernel, maml, meta_kernel
from .problems import Case

MODULES = maml, meta_kernel, kernel, cell_scores
CASES = {case.name: case for module in MODULES for case in module.CASES}
GROUPS = {case.group.name: case.group for case in CASES.values()}


def chosen_cases(names: Sequence[str]) -> tuple[Case, ...]:
    """The cases whose names begin with one of these, or all; raises ConfigurationError for an unknown name."""
    for name in names:
        fits = any(case.startswith(name) for case in CASES)
        require(fits, f"no case is called {name!r}: expected the beginning of one of {', '.join(CASES)}")
    return tuple(
        case for name, case in CASES.items() if not names or any(name.startswith(each) for each in names)
    )
