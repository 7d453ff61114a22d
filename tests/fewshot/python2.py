"""Pickles of protocol 2 as Python 2 and numpy 1 write them: byte strings, and numpy's old module names."""

import struct

import numpy as np


def dumps(value) -> bytes:
    """The bytes that cPickle.dumps(value, 2) of Python 2 gives for strings, numbers, containers, arrays."""
    return b"\x80\x02" + _Writer().write(value) + b"."


class _Writer:
    def __init__(self):
        self.memo = 0

    def put(self) -> bytes:
        self.memo += 1
        index = self.memo - 1
        return b"q" + bytes([index]) if index < 256 else b"r" + struct.pack("<I", index)

    def write(self, value) -> bytes:
        if value is None:
            return b"N"
        if isinstance(value, bool):
            return b"\x88" if value else b"\x89"
        if isinstance(value, int):
            return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)
        if isinstance(value, str | bytes):
            return self.text(value.encode("latin1") if isinstance(value, str) else value)
        kinds = {list: self.list, tuple: self.tuple, dict: self.dict, np.ndarray: self.array}
        return kinds[type(value)](value)

    def text(self, raw: bytes) -> bytes:
        head = b"U" + bytes([len(raw)]) if len(raw) < 256 else b"T" + struct.pack("<i", len(raw))
        return head + raw + self.put()

    def list(self, value) -> bytes:
        return b"]" + self.put() + b"(" + b"".join(map(self.write, value)) + b"e"

    def tuple(self, value) -> bytes:
        inside = b"".join(map(self.write, value))
        if 1 <= len(value) <= 3:
            return inside + b"\x85\x86\x87"[len(value) - 1 :][:1] + self.put()
        return b"(" + inside + b"t" + self.put()

    def dict(self, value) -> bytes:
        inside = b"".join(self.write(key) + self.write(item) for key, item in value.items())
        return b"}" + self.put() + b"(" + inside + b"u"

    def array(self, value) -> bytes:
        new = b"cnumpy.core.multiarray\n_reconstruct\n" + self.put() + b"cnumpy\nndarray\n" + self.put()
        new += self.tuple((0,)) + self.text(b"b") + b"\x87" + self.put() + b"R" + self.put()
        state = self.write(1) + self.tuple(value.shape) + self.dtype(value.dtype)
        state += self.write(False) + self.text(np.ascontiguousarray(value).tobytes())
        return new + b"(" + state + b"t" + self.put() + b"b"

    def dtype(self, dtype) -> bytes:
        new = b"cnumpy\ndtype\n" + self.put() + self.text(dtype.str[1:].encode()) + b"K\x00K\x01\x87"
        order = b"|" if dtype.itemsize == 1 else b"<"
        state = (
            b"K\x03" + self.text(order) + b"NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\x00t" + self.put() + b"b"
        )
        return new + self.put() + b"R" + self.put() + b"(" + state
