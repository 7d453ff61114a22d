"""The errors that users see: each says what was got, what was expected and what to change."""


class MamlTheoryError(Exception):
    """Every error that this package raises on purpose derives from this one."""


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


class CheckpointError(MamlTheoryError, OSError):
    """A saved state is missing, broken, or belongs to another configuration."""


class ConfigurationError(MamlTheoryError, ValueError):
    """A combination of settings that cannot run."""
