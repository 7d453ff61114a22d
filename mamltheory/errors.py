"""The errors that users see: each says what was got, what was expected and what to change."""

import unicodedata

_UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control and format characters, lone surrogates, line separators


def printable(text: object) -> str:
    r"""One line of text that is safe to print to a terminal and to write to a UTF-8 file.

    Args:
        text: any text; names of files may hold escape sequences, line ends and bytes that are not UTF-8.

    Returns:
        The text, with control and format characters escaped, and bytes that are not UTF-8 written as ``\xNN``.
    """
    return "".join(_escaped(c) if unicodedata.category(c) in _UNSAFE else c for c in str(text))


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # Python's form of a byte of a file name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


class MamlTheoryError(Exception):
    """Every error that this package raises on purpose derives from this one; its message is :func:`printable`."""

    def __str__(self) -> str:
        return printable(super().__str__())


class ShapeError(MamlTheoryError, ValueError):
    """A tensor has the wrong number of dimensions, or sizes that do not fit together."""


class ValueRangeError(MamlTheoryError, ValueError):
    """A number lies outside the range for which the formula holds (NaN and infinity included)."""


class SingularKernelError(MamlTheoryError, ArithmeticError):
    """A kernel must be inverted and has an eigenvalue that is zero or negative beyond rounding."""


class UnsupportedModelError(MamlTheoryError, TypeError):
    """A network contains something for which the requested kernel is not defined."""


class NetworkError(UnsupportedModelError, RuntimeError):
    """A network fails in its forward pass or has no derivative; the cause is the error that it or torch raised."""


class GenotypeError(MamlTheoryError, ValueError):
    """A genotype is malformed: unknown operation, wrong number of nodes, or an edge that cannot exist."""


class DataError(MamlTheoryError, OSError):
    """A data set is missing, broken, or not what it claims to be."""


class ImageSizesError(DataError):
    """Images of a data set have different sizes, and no size was given to bring them to."""


class CheckpointError(MamlTheoryError, OSError):
    """A saved state is missing, broken, or belongs to another configuration."""


class ConfigurationError(MamlTheoryError, ValueError):
    """A combination of settings that cannot run."""
