"""One process at a time on a file that several may change in place."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Inside the block no other process is inside one on the same file; waits for its turn.

    Read, change and write in one block, and keep it short. The file may be replaced in it. A hidden lock file stands
    beside it meanwhile; one that a killed process leaves locks nobody out. Where the system or the file system has no
    such locks (Windows, some network drives), nothing is waited for.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    target = Path(os.path.realpath(path))
    lock = target.with_name(f".{target.name[:100]}.lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _take(fcntl, lock)
    except OSError as error:
        raise OSError(error.errno, f"cannot be written: {error.strerror or error}", str(path)) from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # before it is let go: who waited for it sees that it is gone, and makes its own
        os.close(descriptor)


def _take(fcntl: Any, lock: Path) -> int:
    """The open lock file, held, and still the one that stands there."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            own, there = os.fstat(descriptor), lock.stat()
            if (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino):
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:  # Ctrl-C while it waits
            os.close(descriptor)
            raise
        os.close(descriptor)
