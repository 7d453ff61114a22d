"""The version: of the package, of its distribution, and of the records of runs and figures."""

__version__ = "0.2.0"
