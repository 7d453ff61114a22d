"""A disk that refuses: chosen files cannot be written, or files cannot grow."""

import os
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest

ERRORS = ("ENOSPC", "EROFS", "EACCES", "EIO", "ENOTDIR", "EISDIR", "ENAMETOOLONG", "EDQUOT")


@contextmanager
def refusing(name, code):
    """Within the block files whose name contains ``name`` cannot be opened for more, locked or brought to the disk."""
    sync, opened, path_open, refused = os.fsync, os.open, Path.open, []

    def refuse(path):
        if name in Path(path).name:
            refused.append(path)
            raise OSError(code, os.strerror(code), str(path))

    def fsync(descriptor):
        refuse(os.readlink(f"/proc/self/fd/{descriptor}"))
        return sync(descriptor)

    def open_descriptor(path, flags, *arguments, **others):
        if flags & (os.O_WRONLY | os.O_RDWR):
            refuse(path)
        return opened(path, flags, *arguments, **others)

    def open_path(path, mode="r", *arguments, **others):
        if "a" in mode:
            refuse(path)
        return path_open(path, mode, *arguments, **others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "open", open_descriptor)
        patch.setattr(Path, "open", open_path)
        yield refused


@contextmanager
def files_of_at_most(size):
    """Within the block no file of this process grows beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
