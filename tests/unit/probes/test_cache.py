"""Kept files: what was written is read, and nothing that somebody else could have written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from apitrace.probes import cache

KEY, OTHER_KEY = "a" * 64, "b" * 64


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "below" / "cache"
    monkeypatch.setenv(cache.ENVIRONMENT, str(place))
    return place


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_what_was_written_is_read_again(place: Path) -> None:
    assert cache.read(KEY) is None
    cache.write(KEY, b"one")
    cache.write(OTHER_KEY, b"")
    assert cache.read(KEY) == b"one"
    assert cache.read(OTHER_KEY) == b""
    cache.write(KEY, b"two")
    assert cache.read(KEY) == b"two"
    assert names(place) == [KEY, OTHER_KEY]


def test_directory_and_files_are_for_their_owner_alone(place: Path) -> None:
    before = os.umask(0)
    try:
        cache.write(KEY, b"one")
    finally:
        os.umask(before)
    assert place.stat().st_mode & 0o777 == 0o700
    assert (place / KEY).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("which", ["directory", "file"])
@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_what_others_may_write_is_refused(place: Path, which: str, mode: int) -> None:
    cache.write(KEY, b"one")
    (place if which == "directory" else place / KEY).chmod(mode)
    assert cache.read(KEY) is None
    cache.write(OTHER_KEY, b"two")
    assert (place / OTHER_KEY).exists() is (which == "file")


@pytest.mark.parametrize("which", ["directory", "file"])
def test_what_belongs_to_another_user_is_refused(place: Path, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write(KEY, b"one")
    if os.geteuid() == 0:
        os.chown(place if which == "directory" else place / KEY, 65534, -1)
    else:
        uid = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    assert cache.read(KEY) is None
    cache.write(OTHER_KEY, b"two")
    assert (place / OTHER_KEY).exists() is (which == "file" and os.geteuid() == 0)


def test_links_are_not_followed(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write(KEY, b"one")
    (place / KEY).rename(place / "elsewhere")
    (place / KEY).symlink_to(place / "elsewhere")
    assert cache.read(KEY) is None
    (place / "elsewhere").rename(place / KEY)
    assert cache.read(KEY) == b"one"
    (tmp_path / "link").symlink_to(place)
    monkeypatch.setenv(cache.ENVIRONMENT, str(tmp_path / "link"))
    assert cache.read(KEY) is None


def test_a_damaged_file_is_as_good_as_none(place: Path) -> None:
    cache.write(KEY, b"content")
    whole = (place / KEY).read_bytes()
    for index in range(len(whole)):
        (place / KEY).write_bytes(whole[:index])
        assert cache.read(KEY) is None
        (place / KEY).write_bytes(whole[:index] + bytes([whole[index] ^ 1]) + whole[index + 1 :])
        assert cache.read(KEY) is None
    (place / KEY).write_bytes(whole + b"\0")
    assert cache.read(KEY) is None
    (place / KEY).write_bytes(whole)
    assert cache.read(KEY) == b"content"


def test_a_file_under_another_key_is_as_good_as_none(place: Path) -> None:
    cache.write(KEY, b"content")
    (place / KEY).rename(place / OTHER_KEY)
    assert cache.read(OTHER_KEY) is None


def test_what_is_no_file_is_as_good_as_none(place: Path) -> None:
    place.mkdir(parents=True, mode=0o700)
    os.mkfifo(place / KEY)
    (place / OTHER_KEY).mkdir()
    assert cache.read(KEY) is None
    assert cache.read(OTHER_KEY) is None


def test_only_the_newest_are_kept(place: Path) -> None:
    for number in range(cache.KEEP + 5):
        name = f"{number:064x}"
        cache.write(name, b"content")
        os.utime(place / name, ns=(number, number))
    cache.write(KEY, b"content")
    assert names(place) == sorted([KEY, *(f"{number:064x}" for number in range(6, cache.KEEP + 5))])


def test_what_is_too_large_is_neither_written_nor_read(place: Path) -> None:
    cache.write(KEY, bytes(cache.SIZE_LIMIT))
    assert not place.exists()
    cache.write(KEY, b"small")
    with (place / KEY).open("ab") as file:
        file.truncate(cache.SIZE_LIMIT + 1)
    assert cache.read(KEY) is None


def test_a_place_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/self/no")):
        monkeypatch.setenv(cache.ENVIRONMENT, str(place))
        cache.write(KEY, b"content")
        assert cache.read(KEY) is None


def test_a_failed_write_leaves_nothing_behind(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_named: object) -> None:
        raise OSError

    monkeypatch.setattr(os, "replace", fail)
    cache.write(KEY, b"content")
    assert names(place) == []


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cache.ENVIRONMENT, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert cache.directory() == Path("/var/cache/apitrace")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cache.directory() == Path("/xdg/apitrace")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.directory() == tmp_path / ".cache/apitrace"
    monkeypatch.setenv(cache.ENVIRONMENT, "")
    assert cache.directory() is None
    assert cache.read(KEY) is None
