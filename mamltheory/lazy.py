"""Names of a package that are imported when they are first used.

Torch takes more than a second to load, and the command line imports the package before it knows whether there is
anything to compute.
"""

import sys
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, places: Mapping[str, str], packages: Collection[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions ``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: the name of the package, ``__name__``.
        places: the module below the package, by the name that it defines.
        packages: names of packages below it, which are imported in the same way.

    Returns:
        Both functions; other names are an AttributeError, as in every module.
    """

    def found(name: str) -> Any:
        if name in packages:
            return import_module(f"{package}.{name}")
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{places[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *places, *packages})

    return found, names
