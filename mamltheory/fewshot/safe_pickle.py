"""Read data pickles without running what they say: only arrays, containers, strings and numbers come out.

The public few-shot files are pickles written by Python 2 and early numpy. A pickle may name any function. Here the
names are looked up in a closed list, and the value of a name is a function of this module, not the original. Lengths
and shapes that a file declares are compared with its size before memory is allocated, and its size bounds the number
of steps. The result may contain itself many times: never print it whole.
"""

import math
import os
import pickle
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

import numpy as np

from mamltheory.errors import DataError
from mamltheory.files import open_regular, reason, shown

STEPS, BYTES_PER_STEP = 2**22, 16
"""A pickle may take this many steps, and one more per 16 bytes: each may cost a hundred bytes of memory."""
MOST_KEY, MOST_LENGTH = 2**63, 2**48
MAPPED = 4096  # bytes: longer strings that are the content of an array stay in the file, as a memory map
_NDARRAY = object()  # stands for the class numpy.ndarray, which a file may mention but not call
_RECONSTRUCT: Any = np.zeros(0).__reduce__()[0]
_PLAIN_KINDS = "biufSU"
_KEYS = (str, bytes, int, float, bool, type(None), np.generic)


def refuse_other_files(path: Path, head: bytes) -> None:
    """Raise DataError when the first bytes of a data file are those of a web page or of a Git LFS pointer."""
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise DataError(
            f"{path} is a web page saved under the name of a data file (a download link that asked for a "
            "confirmation): open the link in a browser, or fetch the file again"
        )
    if head.startswith(b"version https://git-lfs"):
        raise DataError(
            f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` where it comes from"
        )


def load_pickle(path: Path) -> Any:
    """Return the arrays, containers, strings and numbers in a pickle; nothing in the file is ever executed.

    Text of Python 2 is read as latin1, as the public files need. Large arrays are read-only memory maps where the file
    stores their bytes unchanged (Python 2, and protocols from 3 on), so that 0.8 GB of images open immediately and
    take no memory.

    Args:
        path: the file.

    Raises:
        DataError: the file is a web page, is cut off, declares more than it holds, or asks for anything but data.
    """
    try:
        with open_regular(path) as file:
            refuse_other_files(path, file.peek(64)[:64])
            reader = _DataUnpickler(path, file, mapping=True)
            content = reader.load()
            if reader.unclaimed:  # some long strings were not arrays: they must be read after all
                file.seek(0)
                content = _DataUnpickler(path, file, mapping=False).load()
            return content
    except DataError:
        raise
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path} is not a plain data pickle (it holds {reason(error)}); only arrays, lists, dictionaries, "
            "strings and numbers are read, and nothing in it was run: check where the file comes from, or "
            "save it as npz"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}") from None
    # A broken stream makes the unpickler fail with nearly every built-in exception.
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as a pickle ({type(error).__name__}: {reason(error)}); the file is cut "
            "off, damaged or of another kind: fetch it again and compare its size with the original"
        ) from None


class _File:
    """The open file with its size: a length beyond the end is an error before memory is allocated."""

    def __init__(self, file: BufferedReader) -> None:
        self.file, self.size = file, os.fstat(file.fileno()).st_size
        self.readline, self.skip = file.readline, False

    def read(self, count: int) -> Any:
        """The bytes; a long string becomes a :class:`_Raw` while ``skip`` is set."""
        if count > MAPPED:
            start = self.file.tell()
            if start + count > self.size:
                raise EOFError(f"{count} bytes are announced and {self.size - start} are left")
            if self.skip:
                self.file.seek(count, os.SEEK_CUR)
                return _Raw(start, count)
        return self.file.read(count)


class _Raw:
    """A long byte string that was left in the file."""

    __slots__ = ("length", "start")

    def __init__(self, start: int, length: int) -> None:
        self.start, self.length = start, length

    def __len__(self) -> int:
        return self.length


def _refuse(what: str) -> NoReturn:
    raise pickle.UnpicklingError(what)


class _Allowed:
    """A function without attributes that a pickle could overwrite."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable) -> None:
        self._function = function

    def __call__(self, *arguments: object) -> Any:
        return self._function(*arguments)


def _dtype(name: object, *_flags: object) -> np.dtype:
    dtype = np.dtype(name) if isinstance(name, str) and len(name) < 16 else None
    if dtype is None or dtype.kind not in _PLAIN_KINDS + "O":
        _refuse(f"an array of type {shown(name)}")
    return np.dtype(dtype, copy=True)  # a copy, as its byte order is set afterwards


def _reconstruct(subtype: object, _shape: object, _typecode: object) -> np.ndarray:
    if subtype is not _NDARRAY:
        _refuse("an array of a special class")
    return _RECONSTRUCT(np.ndarray, (0,), b"b")  # shape and content follow in the state


class _Steps(dict):
    """The function of every opcode, for a limited number of calls."""

    def __init__(self, table: dict[int, Callable], most: int) -> None:
        super().__init__(table)
        self.left = most

    def __getitem__(self, opcode: int) -> Callable:
        self.left -= 1
        if self.left < 0:
            _refuse("more steps than a data set of its size takes")
        return super().__getitem__(opcode)


_CORES = ("core", "_core")  # numpy moved its inner modules in version 2


class _DataUnpickler(pickle._Unpickler):
    # The Python unpickler keeps its memo in a dictionary. The C unpickler keeps it in an array, so one flipped bit in
    # an index would allocate tens of gigabytes.

    stack: list[Any]
    memo: dict[int, Any]
    append: Callable[[Any], None]
    read: Callable[[int], Any]
    readline: Callable[[], bytes]
    pop_mark: Callable[[], list[Any]]
    dispatch: ClassVar[dict[int, Callable]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, path: Path, file: BufferedReader, mapping: bool) -> None:
        self.source, self.unclaimed = _File(file), 0
        self.replaced: dict[int, tuple[Any, Any]] = {}
        self.whole = np.memmap(path, np.uint8, "r") if mapping and self.source.size > MAPPED else None
        # The bytes of all copies that the file orders: without this bound a short file could fill any memory.
        self.budget = 16 * self.source.size + 2**20
        # In the instance: the unpickler looks up the opcodes in ``self.dispatch``.
        vars(self)["dispatch"] = _Steps(self.dispatch, STEPS + self.source.size // BYTES_PER_STEP)
        super().__init__(self.source, encoding="latin1")
        self.allowed = {
            ("numpy", "dtype"): _Allowed(_dtype),
            ("numpy", "ndarray"): _NDARRAY,
            ("_codecs", "encode"): _Allowed(self._latin1),
            ("builtins", "bytes"): _Allowed(lambda: b""),
            ("__builtin__", "bytes"): _Allowed(lambda: b""),
            ("collections", "OrderedDict"): _Allowed(self._dictionary),
            **{(f"numpy.{core}.multiarray", "_reconstruct"): _Allowed(_reconstruct) for core in _CORES},
            **{(f"numpy.{core}.multiarray", "scalar"): _Allowed(self._scalar) for core in _CORES},
            **{(f"numpy.{core}.numeric", "_frombuffer"): _Allowed(self._frombuffer) for core in _CORES},
        }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module[:80]}.{name[:80]}") from None

    def persistent_load(self, pid: object) -> NoReturn:
        _refuse(f"a persistent object {shown(pid)}")

    def get_extension(self, code: int) -> NoReturn:
        _refuse(f"the registered extension {code}")

    def _charge(self, size: int) -> None:
        self.budget -= size
        if self.budget < 0:
            _refuse("copies that grow far beyond the file")

    def _latin1(self, text: Any, encoding: object) -> bytes:
        if type(text) is not str or encoding not in ("latin1", "latin-1"):
            _refuse(f"text encoded as {shown(encoding)}")
        self._charge(len(text))
        return text.encode("latin1")

    def _scalar(self, dtype: object, data: Any = b"") -> np.generic:
        raw = data.encode("latin1") if isinstance(data, str) else data
        if not isinstance(dtype, np.dtype) or dtype.kind not in _PLAIN_KINDS or len(raw) != dtype.itemsize:
            _refuse("a numpy scalar that is not a number")
        self._charge(len(raw))
        return np.frombuffer(raw, dtype)[0]

    def _dictionary(self, pairs: Any = ()) -> dict:
        self._charge(16 * len(pairs))
        return dict(_checked_key(key, value) for key, value in pairs)

    def _frombuffer(self, data: Any, dtype: object, shape: object, order: object = "C") -> np.ndarray:
        known = type(order) is str and order in ("C", "F")
        if not isinstance(dtype, np.dtype) or dtype.kind not in _PLAIN_KINDS or not known:
            _refuse("a raw buffer of objects")
        return self._array(data, dtype, _checked_shape(shape), "F" if order == "F" else "C")

    # --- long strings stay in the file ---

    def _load_long(self, length: int) -> None:
        self.source.skip = self.whole is not None
        data = self.read(length)
        self.source.skip = False
        self.unclaimed += isinstance(data, _Raw)
        self.append(data)

    def load_binstring(self) -> None:
        length = int.from_bytes(self.read(4), "little", signed=True)
        if length < 0:
            _refuse("a string of negative length")
        self._load_long(length)
        if isinstance(self.stack[-1], bytes):
            self.stack[-1] = self.stack[-1].decode("latin1")

    def load_binbytes(self) -> None:
        self._load_long(int.from_bytes(self.read(4), "little"))

    def load_binbytes8(self) -> None:
        self._load_long(int.from_bytes(self.read(8), "little"))

    def _array(
        self, data: Any, dtype: np.dtype, shape: tuple[int, ...], order: Literal["C", "F"]
    ) -> np.ndarray:
        """The array with this content; mapped when the content was left in the file."""
        if math.prod(shape) * dtype.itemsize != len(data):
            _refuse(f"an array of shape {shape} with {len(data)} bytes")
        if isinstance(data, _Raw) and self.whole is not None:
            self.unclaimed -= 1
            return self.whole[data.start : data.start + data.length].view(dtype).reshape(shape, order=order)
        return np.frombuffer(data, dtype).reshape(shape, order=order)

    # --- only arrays and their types get a state, which is checked before ---

    def load_build(self) -> None:
        state, instance = self.stack.pop(), self.stack[-1]
        if type(instance) is np.ndarray and isinstance(state, tuple) and len(state) == 5:
            self._build_array(instance, *state[1:])
        elif isinstance(instance, np.dtype) and isinstance(state, tuple) and len(state) >= 7:
            _, order, *parts, size, alignment = state[:7]
            usual = parts == [None] * 3 and size in (-1, instance.itemsize) and type(size) is int
            if not usual or order not in ("<", ">", "=", "|") or type(alignment) is not int:
                _refuse("an array of a structured type")
            self._replace(instance, instance.newbyteorder(order))
        else:
            _refuse(f"an object {type(instance).__name__} with a state")

    def _build_array(
        self, instance: np.ndarray, declared: object, dtype: object, fortran: object, data: object
    ) -> None:
        shape = _checked_shape(declared)
        if not isinstance(dtype, np.dtype) or dtype.kind not in _PLAIN_KINDS + "O":
            _refuse("an array of no known type")
        if isinstance(data, _Raw):
            self._replace(instance, self._array(data, dtype, shape, "F" if fortran else "C"))
            return
        if not isinstance(data, list | str | bytes | bytearray) or isinstance(data, list) != dtype.hasobject:
            _refuse(f"an array whose content is a {type(data).__name__}")
        size = 1 if dtype.hasobject else dtype.itemsize
        if math.prod(shape) * size != len(data):
            _refuse(f"an array of shape {shape} with a content of length {len(data)}")
        self._charge(math.prod(shape) * dtype.itemsize)
        raw = bytes(data) if isinstance(data, bytes | bytearray) else data
        state: Any = (1, shape, dtype, bool(fortran), raw)
        instance.__setstate__(state)

    def _replace(self, instance: object, built: object) -> None:
        """Put ``built`` in the place of the instance, on the stack and wherever the file refers to it again."""
        self.stack[-1] = built
        self.replaced[id(instance)] = (instance, built)

    def _recall(self, index: int) -> None:
        value = self.memo[index]
        self.append(self.replaced.get(id(value), (value, value))[1])

    def load_get(self) -> None:
        self._recall(int(self.readline()))

    def load_binget(self) -> None:
        self._recall(self.read(1)[0])

    def load_long_binget(self) -> None:
        self._recall(int.from_bytes(self.read(4), "little"))

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self._set(self.stack[-1], items)

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append(self._set({}, items))

    @staticmethod
    def _set(target: Any, items: list) -> dict:
        if type(target) is not dict:
            _refuse("entries for something that is no dictionary")
        target.update(_checked_key(*items[i : i + 2]) for i in range(0, len(items), 2))
        return target

    dispatch |= {
        pickle.BINSTRING[0]: load_binstring,
        pickle.BINBYTES[0]: load_binbytes,
        pickle.BINBYTES8[0]: load_binbytes8,
        pickle.BYTEARRAY8[0]: load_binbytes8,
        pickle.BUILD[0]: load_build,
        pickle.GET[0]: load_get,
        pickle.BINGET[0]: load_binget,
        pickle.LONG_BINGET[0]: load_long_binget,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
    }
    for opcode in (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET):
        del dispatch[opcode[0]]


def _checked_key(key: object, value: object) -> tuple[object, object]:
    if not isinstance(key, _KEYS):  # hashing deeply nested tuples would overrun the C stack
        _refuse(f"a dictionary with a {type(key).__name__} as key")
    if isinstance(key, int) and abs(key) >= MOST_KEY:  # larger ones can be chosen to collide
        _refuse("a dictionary with a huge number as key")
    return key, value


def _checked_shape(shape: object) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or len(shape) > 32:
        _refuse("an array of impossible shape")
    if not all(type(n) is int and 0 <= n < MOST_LENGTH for n in shape):
        _refuse("an array of impossible shape")
    return shape
