"""Files that spare the next start some work: what was compiled is kept, under a key that says what it was made from.

What is read here is loaded into the kernel, so only files are taken that nobody but this user could have written: file
and directory must belong to the effective user and be writable by no one else. A file carries a checksum over its key
and its content; one that is damaged, foreign or of another key is as good as none. Nothing here fails: a cache that
cannot be read or written is one that is empty.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ENVIRONMENT = "APITRACE_CACHE"
"""Names another directory; empty: no cache."""

KEEP = 32
"""Files that are kept, the newest: one for each combination of options (11 switches, few of which anyone varies) and
each version of kernel, bcc and apitrace. ccache, too, bounds its cache by number and drops the oldest."""

SIZE_LIMIT = 8 << 20
"""Bytes of one file: twenty times what the programs take."""

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def directory() -> Path | None:
    """Return where the cache is, whether or not it exists yet; None if there is to be none."""
    named = os.environ.get(ENVIRONMENT)
    if named is not None:
        return Path(named) if named else None
    if os.geteuid() == 0:
        return Path("/var/cache/apitrace")
    base = os.environ.get("XDG_CACHE_HOME", "")
    if Path(base).is_absolute():  # a relative one is to be ignored: XDG Base Directory Specification
        return Path(base) / "apitrace"
    with contextlib.suppress(RuntimeError):  # no home directory
        return Path.home() / ".cache/apitrace"
    return None


def _is_ours(descriptor: int) -> bool:
    status = os.fstat(descriptor)
    return status.st_uid == os.geteuid() and not status.st_mode & _WRITABLE_BY_OTHERS


@contextlib.contextmanager
def _opened(place: Path | None) -> Iterator[int]:
    """Give a descriptor of the directory. Raises OSError if it is not there, or not ours alone."""
    if place is None:
        raise FileNotFoundError
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not _is_ours(descriptor):
            raise PermissionError
        yield descriptor
    finally:
        os.close(descriptor)


def _checksum(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + content).digest()


def read(key: str) -> bytes | None:
    """Return what was kept under this key (hexadecimal digits), or None."""
    with contextlib.suppress(OSError), _opened(directory()) as place:
        file = os.open(key, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=place)
        with os.fdopen(file, "rb") as stream:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode) or not _is_ours(file) or status.st_size > SIZE_LIMIT:
                return None
            kept = stream.read(SIZE_LIMIT + 1)
        size = hashlib.sha256().digest_size
        if kept[:size] == _checksum(key, kept[size:]):
            return kept[size:]
    return None


def write(key: str, content: bytes) -> None:
    """Keep this under its key, if that is possible. Readers see the old file or the new one, never half of one."""
    place = directory()
    if place is None or len(content) > SIZE_LIMIT - 64:
        return
    with contextlib.suppress(OSError):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(OSError), _opened(place) as opened:
        temporary = f".{secrets.token_hex(8)}"
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=opened)
        try:
            with os.fdopen(file, "wb") as stream:
                stream.write(_checksum(key, content) + content)
            os.replace(temporary, key, src_dir_fd=opened, dst_dir_fd=opened)
        except OSError:
            os.unlink(temporary, dir_fd=opened)
            raise
        _drop_oldest(opened)


def _drop_oldest(place: int) -> None:
    """Remove all but the newest files: temporary ones of writers that died as well."""
    ages = []
    with os.scandir(place) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # another start drops files too
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    ages.append((status.st_mtime_ns, entry.name))
    for _, name in sorted(ages, reverse=True)[KEEP:]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=place)
