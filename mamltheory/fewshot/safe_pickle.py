"""Reading data pickles without running what they say: only arrays, containers, strings and numbers come out.

The public few-shot files are pickles written by Python 2 and early numpy. A pickle may name any function;
here the names are looked up in a closed list, and what stands behind a name is a value of ours, not the
original.
"""

import pickle
from pathlib import Path

import numpy as np

from mamltheory.errors import DataError

_NDARRAY = object()  # stands for the class numpy.ndarray, which a file may mention but not call
_RECONSTRUCT = np.zeros(0).__reduce__()[0]
_PLAIN_KINDS = "biufSU"


class _Allowed:
    """A callable without attributes that a pickle could overwrite."""

    __slots__ = ()

    @staticmethod
    def _refuse(what: str) -> None:
        raise pickle.UnpicklingError(what)


class _Dtype(_Allowed):
    __slots__ = ()

    def __call__(self, name: str, *_flags: object) -> np.dtype:
        dtype = np.dtype(name) if isinstance(name, str) and len(name) < 16 else None
        if dtype is None or dtype.kind not in _PLAIN_KINDS + "O":
            self._refuse(f"an array of type {name!r:.40}")
        return dtype


class _Reconstruct(_Allowed):
    __slots__ = ()

    def __call__(self, subtype: object, _shape: object, _typecode: object) -> np.ndarray:
        if subtype is not _NDARRAY:
            self._refuse("an array of a special class")
        return _RECONSTRUCT(np.ndarray, (0,), b"b")  # shape and content follow in the state


class _FromBuffer(_Allowed):
    __slots__ = ()

    def __call__(self, data: object, dtype: np.dtype, shape: tuple, order: str = "C") -> np.ndarray:
        if not isinstance(dtype, np.dtype) or dtype.kind not in _PLAIN_KINDS or order not in ("C", "F"):
            self._refuse("a raw buffer of objects")
        return np.frombuffer(data, dtype).reshape(shape, order=order)


class _Scalar(_Allowed):
    __slots__ = ()

    def __call__(self, dtype: np.dtype, data: object = b"") -> np.generic:
        raw = data.encode("latin1") if isinstance(data, str) else data
        if not isinstance(dtype, np.dtype) or dtype.kind not in _PLAIN_KINDS or len(raw) != dtype.itemsize:
            self._refuse("a numpy scalar that is not a number")
        return np.frombuffer(raw, dtype)[0]


class _Latin1(_Allowed):
    __slots__ = ()

    def __call__(self, text: str, encoding: str) -> bytes:
        if encoding not in ("latin1", "latin-1"):
            self._refuse(f"text encoded as {encoding!r:.40}")
        return text.encode("latin1")


class _EmptyBytes(_Allowed):
    __slots__ = ()

    def __call__(self) -> bytes:
        return b""


_ALLOWED = {
    ("numpy", "dtype"): _Dtype(),
    ("numpy", "ndarray"): _NDARRAY,
    ("_codecs", "encode"): _Latin1(),
    ("builtins", "bytes"): _EmptyBytes(),
    ("__builtin__", "bytes"): _EmptyBytes(),
    ("collections", "OrderedDict"): dict,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Reconstruct() for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _Scalar() for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _FromBuffer() for core in ("core", "_core")},
}


class _DataUnpickler(pickle._Unpickler):
    # The unpickler written in Python keeps its memo in a dictionary; the C one keeps it in an array, of
    # which one
    # flipped bit in an index claims tens of gigabytes.

    def find_class(self, module: str, name: str) -> object:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name}") from None

    def persistent_load(self, pid: object) -> object:
        raise pickle.UnpicklingError(f"a persistent object {pid!r:.40}")


def load_pickle(path: Path) -> object:
    """The arrays, containers, strings and numbers in a pickle; nothing in the file is ever executed.

    Text of Python 2 is read as latin1, as the public files need. Raises DataError when the file is a web
    page, is cut off, or asks for anything else.
    """
    try:
        with path.open("rb") as file:
            head = file.peek(64)[:64]
            _refuse_other_files(path, head)
            return _DataUnpickler(file, encoding="latin1").load()
    except DataError:
        raise
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path} is not a plain data pickle (it holds {error}); only arrays, lists, dictionaries, "
            "strings and numbers are read, and nothing in it was run: check where the file comes from, or "
            "save it as npz"
        ) from None
    # A broken stream makes the unpickler fail with nearly every built-in exception.
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as a pickle ({type(error).__name__}: {error}); the file is cut off, "
            "damaged or of another kind: fetch it again and compare its size with the original"
        ) from None


def _refuse_other_files(path: Path, head: bytes) -> None:
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise DataError(
            f"{path} is a web page saved under the name of a data file (a download link that asked for a "
            "confirmation): open the link in a browser, or fetch the file again"
        )
    if head.startswith(b"version https://git-lfs"):
        raise DataError(
            f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` where it comes from"
        )
