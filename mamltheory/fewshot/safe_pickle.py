"""Reading data pickles without running what they say: only arrays, containers, strings and numbers come out.

The public few-shot files are pickles written by Python 2 and early numpy. A pickle may name any function;
here the names are looked up in a closed list, and what stands behind a name is a value of ours, not the
original. What a file declares (lengths, shapes) is compared with its size before memory is asked for, and how
many steps it may take goes by its size. What comes out may hold itself many times over: never print it whole.
"""

import math
import os
import pickle
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import ClassVar

import numpy as np

from mamltheory.errors import DataError
from mamltheory.fewshot.other_files import refuse_other_files
from mamltheory.files import open_regular, reason, shown

__all__ = ["load_pickle", "refuse_other_files"]

STEPS, BYTES_PER_STEP = 2**22, 16
"""A pickle may take so many steps, and one more for so many bytes: each may cost a hundred bytes of memory."""
MOST_KEY, MOST_LENGTH = 2**63, 2**48
MAPPED = 4096  # bytes: strings of this size that are an array's content stay in the file, as a memory map
_NDARRAY = object()  # stands for the class numpy.ndarray, which a file may mention but not call
_RECONSTRUCT = np.zeros(0).__reduce__()[0]
_PLAIN_KINDS = "biufSU"
_KEYS = (str, bytes, int, float, bool, type(None), np.generic)


def load_pickle(path: Path) -> object:
    """The arrays, containers, strings and numbers in a pickle; nothing in the file is ever executed.

    Text of Python 2 is read as latin1, as the public files need. Large arrays are read-only memory maps of
    the file where it holds their bytes as they are (Python 2, and protocols from 3 on), so that 0.8 GB of
    images open at once and take no memory of their own. Raises DataError when the file is a web page, is cut
    off, declares more than it holds, or asks for anything but data.
    """
    try:
        with open_regular(path) as file:
            refuse_other_files(path, file.peek(64)[:64])
            reader = _DataUnpickler(path, file, mapping=True)
            content = reader.load()
            if reader.unclaimed:  # long strings that were no array's content: they must be read after all
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
    """The open file with its size: a length that goes beyond the end is an error before it is memory."""

    def __init__(self, file: BufferedReader) -> None:
        self.file, self.size = file, os.fstat(file.fileno()).st_size
        self.readline, self.skip = file.readline, False

    def read(self, count: int) -> "bytes | _Raw":
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


def _refuse(what: str) -> None:
    raise pickle.UnpicklingError(what)


class _Allowed:
    """A function without attributes that a pickle could overwrite."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable) -> None:
        self._function = function

    def __call__(self, *arguments: object) -> object:
        return self._function(*arguments)


def _dtype(name: object, *_flags: object) -> np.dtype:
    dtype = np.dtype(name) if isinstance(name, str) and len(name) < 16 else None
    if dtype is None or dtype.kind not in _PLAIN_KINDS + "O":
        _refuse(f"an array of type {shown(name)}")
    return np.dtype(dtype, copy=True)  # of its own: its byte order is set afterwards


def _reconstruct(subtype: object, _shape: object, _typecode: object) -> np.ndarray:
    if subtype is not _NDARRAY:
        _refuse("an array of a special class")
    return _RECONSTRUCT(np.ndarray, (0,), b"b")  # shape and content follow in the state


class _Steps(dict):
    """What every opcode does, for so many of them."""

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
    # The unpickler written in Python keeps its memo in a dictionary; the C one keeps it in an array, of
    # which one flipped bit in an index claims tens of gigabytes.

    dispatch: ClassVar[dict[int, Callable]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, path: Path, file: BufferedReader, mapping: bool) -> None:
        self.source, self.unclaimed, self.replaced = _File(file), 0, {}
        self.whole = np.memmap(path, np.uint8, "r") if mapping and self.source.size > MAPPED else None
        # Copies that the file orders may add up to so much; a short file could else fill any memory.
        self.budget = 16 * self.source.size + 2**20
        self.dispatch = _Steps(self.dispatch, STEPS + self.source.size // BYTES_PER_STEP)
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

    def find_class(self, module: str, name: str) -> object:
        try:
            return self.allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module[:80]}.{name[:80]}") from None

    def persistent_load(self, pid: object) -> object:
        _refuse(f"a persistent object {shown(pid)}")

    def get_extension(self, code: int) -> None:
        _refuse(f"the registered extension {code}")

    def _charge(self, size: int) -> None:
        self.budget -= size
        if self.budget < 0:
            _refuse("copies that grow far beyond the file")

    def _latin1(self, text: object, encoding: object) -> bytes:
        if type(text) is not str or encoding not in ("latin1", "latin-1"):
            _refuse(f"text encoded as {shown(encoding)}")
        self._charge(len(text))
        return text.encode("latin1")

    def _scalar(self, dtype: object, data: object = b"") -> np.generic:
        raw = data.encode("latin1") if isinstance(data, str) else data
        if not isinstance(dtype, np.dtype) or dtype.kind not in _PLAIN_KINDS or len(raw) != dtype.itemsize:
            _refuse("a numpy scalar that is not a number")
        self._charge(len(raw))
        return np.frombuffer(raw, dtype)[0]

    def _dictionary(self, pairs: object = ()) -> dict:
        self._charge(16 * len(pairs))
        return dict(_checked_key(key, value) for key, value in pairs)

    def _frombuffer(self, data: object, dtype: object, shape: object, order: object = "C") -> np.ndarray:
        if (
            not isinstance(dtype, np.dtype)
            or dtype.kind not in _PLAIN_KINDS
            or type(order) is not str
            or order not in ("C", "F")
        ):
            _refuse("a raw buffer of objects")
        return self._array(data, dtype, _checked_shape(shape), order)

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

    def _array(self, data: object, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
        """The array with this content; mapped when the content was left in the file."""
        if math.prod(shape) * dtype.itemsize != len(data):
            _refuse(f"an array of shape {shape} with {len(data)} bytes")
        if isinstance(data, _Raw):
            self.unclaimed -= 1
            return self.whole[data.start : data.start + data.length].view(dtype).reshape(shape, order=order)
        return np.frombuffer(data, dtype).reshape(shape, order=order)

    # --- state is set on arrays and their types alone, after a look at it ---

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
        self, instance: np.ndarray, shape: object, dtype: object, fortran: object, data: object
    ) -> None:
        shape, order = _checked_shape(shape), "F" if fortran else "C"
        if not isinstance(dtype, np.dtype) or dtype.kind not in _PLAIN_KINDS + "O":
            _refuse("an array of no known type")
        if isinstance(data, _Raw):
            self._replace(instance, self._array(data, dtype, shape, order))
            return
        if not isinstance(data, list if dtype.hasobject else str | bytes | bytearray):
            _refuse(f"an array whose content is a {type(data).__name__}")
        size = 1 if dtype.hasobject else dtype.itemsize
        if math.prod(shape) * size != len(data):
            _refuse(f"an array of shape {shape} with a content of length {len(data)}")
        self._charge(math.prod(shape) * dtype.itemsize)
        raw = data if dtype.hasobject or isinstance(data, str) else bytes(data)
        instance.__setstate__((1, shape, dtype, bool(fortran), raw))

    def _replace(self, instance: object, built: object) -> None:
        """Let `built` stand for the instance on the stack, and wherever the file comes back to it."""
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
    def _set(target: object, items: list) -> dict:
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
    plain = (
        isinstance(shape, tuple)
        and len(shape) <= 32
        and all(type(n) is int and 0 <= n < MOST_LENGTH for n in shape)
    )
    if not plain:
        _refuse("an array of impossible shape")
    return shape
