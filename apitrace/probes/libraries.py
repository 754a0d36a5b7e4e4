"""Which TLS implementations a process has: in shared libraries, in its executable, in Go, in Java, or unreadable.

A file is judged by what it defines, not by its name: whatever defines SSL_read and SSL_write is an OpenSSL, be it the
system's libssl, a wheel's `libssl-8bd944e8.so.3`, or node. Names serve only for what cannot be read anyhow. Each file
is opened as the process has it (through /proc/PID/root, or /proc/PID/map_files once it was deleted or replaced), and
judged once per device and inode. Files and processes may go at any moment and may be hostile: what cannot be read is
passed over, and nothing here raises.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

from apitrace.probes import golang
from apitrace.probes.elf import Elf, ElfError

SHARED, EXECUTABLE, LIBRARY, RUNTIME = (
    "shared library", "inside the executable", "inside a library", "part of the runtime",
)  # fmt: skip
"""How a TLS implementation comes into the process."""

OPENSSL, GNUTLS, GO, OTHER = "openssl", "gnutls", "go", "other"

_DEFINING = {OPENSSL: ("SSL_read", "SSL_write"), GNUTLS: ("gnutls_record_recv", "gnutls_record_send")}
_BIO = "BIO_write"

_OPENSSL_TEXT = re.compile(rb"OpenSSL (\d+\.\d+\.\d+[a-z]*)[-+\w]* +(?:\d+ [A-Z][a-z]{2} \d{4}|\(compatible; ([\w-]+))")
_LIBRESSL_TEXT = re.compile(rb"LibreSSL (\d+\.\d+\.\d+)()")
_GNUTLS_TEXT = re.compile(rb"\0(3\.\d+\.\d+)()\0")
_VERSION_TEXT = {
    OPENSSL: (("OpenSSL", _OPENSSL_TEXT), ("LibreSSL", _LIBRESSL_TEXT)),
    GNUTLS: (("GnuTLS", _GNUTLS_TEXT),),
}
"""Where a library says its version; the second group is the library that imitates the first."""
_LONGEST_TEXT = 256

# Signs of what was linked in statically and stripped of its symbols: paths that its error messages carry.
_SIGNS = (
    ("rustls", re.compile(rb"/rustls-(\d+\.\d+\.\d+)/"), "rustls, compiled in: its functions have no names to probe"),
    ("OpenSSL", re.compile(rb"ssl/ssl_lib\.c\0()"), "OpenSSL, linked in statically; its symbols were stripped"),
    ("BoringSSL", re.compile(rb"ssl/ssl_lib\.cc\0()"), "BoringSSL, linked in statically; its symbols were stripped"),
)
_SMALLEST = 256 << 10
"""Bytes of a file that is searched for signs: libssl alone is more."""

# Beginning of a library's file name -> what it is, and why it cannot be read.
_UNREADABLE = {
    "libjvm.so": ("JSSE", "Java's own TLS is compiled while it runs: there is nothing to probe"),
    "libssl3.so": ("NSS", "NSS is not supported"),
    "libmbedtls.so": ("Mbed TLS", "Mbed TLS is not supported"),
    "libwolfssl.so": ("wolfSSL", "wolfSSL is not supported"),
    "libs2n.so": ("s2n-tls", "s2n-tls is not supported"),
}
_LARGEST_RELEASE = 64 << 10  # a JDK's is 1 to 2 KB
_JAVA_RELEASE = re.compile(rb'^JAVA_VERSION="([\w.+-]+)"', re.MULTILINE)
_JAVA_PATH = re.compile(r"(?:java|jdk|jre)\w*-(\d+)")

_MAPPING = re.compile(rb"^([0-9a-f]+-[0-9a-f]+) ..x. ([0-9a-f]+) [0-9a-f]+:[0-9a-f]+ (\d+) +(/.*)$", re.MULTILINE)
_NOT_FILES = ("/memfd:", "/dev/", "/SYSV", "/anon_hugepage")
_DELETED = " (deleted)"
_MOST_FILES = 4096
"""Verdicts kept: a host's libraries and executables; a desktop maps some 2,000."""


class MappedFile(NamedTuple):
    """A file with code in it, as a process has mapped it."""

    path: str
    """As the process sees it."""
    file: str
    """A path that opens it from here, also if it was deleted; good as long as the process is."""
    device: int
    inode: int


class MappedCode(NamedTuple):
    """Where in a process a part of a file lies that has code in it."""

    start: int
    end: int
    offset: int
    """In the file, of what lies at `start`."""
    file: MappedFile

    @property
    def size(self) -> int:
        """In bytes."""
        return self.end - self.start


class Stack(NamedTuple):
    """A TLS implementation in a process."""

    kind: str
    """OPENSSL, GNUTLS, GO: can be probed if `reason` is empty. OTHER: cannot."""
    library: str
    """"OpenSSL", "BoringSSL", "GnuTLS", "crypto/tls", "JSSE", "rustls", ..."""
    version: str | None
    """Of the library; for Go and Java, of the language."""
    where: MappedFile
    build_id: str | None
    linked: str
    """SHARED, EXECUTABLE, LIBRARY or RUNTIME."""
    bio: MappedFile | None
    """For OPENSSL: where BIO_write is."""
    reason: str
    """Why it cannot be read, for people; empty if it can."""


class _Verdict(NamedTuple):
    """What a file turned out to be, whichever process has it."""

    findings: tuple[tuple[str, str, str | None, str], ...] = ()
    """(kind, library, version, reason)."""
    build_id: str | None = None
    needed: tuple[str, ...] = ()
    has_bio: bool = False
    crypto_version: tuple[str, str] | None = None
    """(library, version) of a file that has BIO_write: OpenSSL says its version there."""


class Libraries:
    """Finds TLS implementations; remembers its verdict on each file."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._verdicts: dict[tuple[int, int, int, int], _Verdict] = {}

    def stacks(self, pid: int, files: list[MappedFile] | None = None) -> list[Stack]:
        """Return the TLS implementations that a process has now. Empty: none, or the process is gone.

        `files`: what `mapped` says, if that is known already.
        """
        if files is None:
            files = self.mapped(pid)
        judged = [(where, self._judge(where)) for where in files]
        executable = self._executable(pid)
        stacks = []
        for where, verdict in judged:
            for kind, library, version, reason in verdict.findings:
                bio = _bio_of(where, verdict, judged) if kind == OPENSSL else None
                known = (library, version)
                if version is None and bio is not None:
                    known = bio[1].crypto_version or known
                stacks.append(Stack(
                    kind, *known, where, verdict.build_id, _linked(where, executable), bio[0] if bio else None, reason,
                ))  # fmt: skip
            named = _by_name(where.path)
            if named is not None:
                java = self._java_version(pid, where.path) if named[0] == "JSSE" else None
                stacks.append(Stack(OTHER, named[0], java, where, verdict.build_id,
                                    RUNTIME if named[0] == "JSSE" else SHARED, None, named[1]))  # fmt: skip
        return stacks

    def mapped(self, pid: int) -> list[MappedFile]:
        """Return the files that a process has mapped code from, each once."""
        files: dict[tuple[int, int], MappedFile] = {}
        for mapping in self.code(pid):
            files.setdefault((mapping.file.device, mapping.file.inode), mapping.file)
        return list(files.values())

    def code(self, pid: int) -> list[MappedCode]:
        """Return where in a process files with code are mapped."""
        located: dict[tuple[str, bytes], MappedFile | None] = {}
        found = []
        for span, offset, inode, raw_path in _MAPPING.findall(self._read(self._proc / str(pid) / "maps")):
            path = os.fsdecode(raw_path).replace("\\012", "\n")
            if path.startswith(_NOT_FILES):
                continue
            if (path, inode) not in located:
                located[path, inode] = self._locate(pid, span.decode(), int(inode), path)
            file = located[path, inode]
            if file is not None:
                start, end = (int(address, 16) for address in span.split(b"-"))
                found.append(MappedCode(start, end, int(offset, 16), file))
        return found

    def _locate(self, pid: int, span: str, inode: int, path: str) -> MappedFile | None:
        process = self._proc / str(pid)
        deleted = path.endswith(_DELETED)
        path = path.removesuffix(_DELETED)
        # Under the same name there may be another file by now; on an overlay the number may differ all the same.
        by_name, by_mapping = f"{process}/root{path}", f"{process}/map_files/{span}"
        named = None if deleted else _regular(by_name, follow=False)
        if named is None or named.st_ino != inode:
            mapped = _regular(by_mapping, follow=True)
            if mapped is not None and (named is None or (mapped.st_dev, mapped.st_ino) != (named.st_dev, named.st_ino)):
                return MappedFile(path, by_mapping, mapped.st_dev, mapped.st_ino)
        return None if named is None else MappedFile(path, by_name, named.st_dev, named.st_ino)

    def _executable(self, pid: int) -> tuple[int, int] | None:
        found = _regular(f"{self._proc}/{pid}/exe", follow=True)
        return None if found is None else (found.st_dev, found.st_ino)

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError:
            return b""

    def _judge(self, where: MappedFile) -> _Verdict:
        found = _regular(where.file, follow=True)
        if found is None:
            return _Verdict()
        key = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
        verdict = self._verdicts.get(key)
        if verdict is None:
            verdict = _inspect(where.file, found.st_size)
            if verdict is None:
                return _Verdict()
            if len(self._verdicts) >= _MOST_FILES:
                self._verdicts.clear()
            self._verdicts[key] = verdict
        return verdict

    def _java_version(self, pid: int, path: str) -> str | None:
        for parent in list(Path(path).parents)[1:5]:  # lib/server/libjvm.so, or jre/lib/amd64/server/libjvm.so
            release = f"{self._proc}/{pid}/root{parent}/release"
            found = _regular(release, follow=False)
            if found is not None and found.st_size <= _LARGEST_RELEASE:
                match = _JAVA_RELEASE.search(self._read(Path(release)))
                if match:
                    return match[1].decode()
        match_path = _JAVA_PATH.search(path)
        return match_path[1] if match_path else None


def _regular(path: str, *, follow: bool) -> os.stat_result | None:
    """Return the status of a regular file; None if it is none, is gone, or may not be seen."""
    try:
        found = os.stat(path, follow_symlinks=follow)  # noqa: PTH116 - on every mapping of every process: no Path
    except (OSError, ValueError):
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _by_name(path: str) -> tuple[str, str] | None:
    name = path.rpartition("/")[2]
    return next((known for prefix, known in _UNREADABLE.items() if name.startswith(prefix)), None)


def _linked(where: MappedFile, executable: tuple[int, int] | None) -> str:
    if (where.device, where.inode) == executable:
        return EXECUTABLE
    name = where.path.rpartition("/")[2]
    return SHARED if name.startswith(("libssl", "libgnutls")) else LIBRARY


def _bio_of(
    where: MappedFile, verdict: _Verdict, judged: list[tuple[MappedFile, _Verdict]]
) -> tuple[MappedFile, _Verdict] | None:
    """Return the file whose BIO_write a libssl uses: itself, a library that it asks for, or the only one there is."""
    if verdict.has_bio:
        return where, verdict
    having = [(other, its) for other, its in judged if its.has_bio]
    asked = [pair for pair in having if pair[0].path.rpartition("/")[2] in verdict.needed]
    return asked[0] if asked else having[0] if len(having) == 1 else None


def _inspect(file: str, size: int) -> _Verdict | None:
    """Judge a file; None: it cannot be opened by this path, say because the process has ended."""
    try:
        with Elf.open(file) as elf:
            return _inspect_elf(elf, size)
    except OSError:
        return None
    except ElfError:
        return _Verdict()


def _inspect_elf(elf: Elf, size: int) -> _Verdict:
    needed = tuple(elf.needed())
    defined = elf.symbols([_BIO, *(name for names in _DEFINING.values() for name in names)])
    findings: list[tuple[str, str, str | None, str]] = []
    has_bio = _BIO in defined
    crypto = _text_version(elf, OPENSSL) if has_bio else None
    for kind, names in _DEFINING.items():
        # libgnutls-openssl imitates the one by the other, which is probed itself.
        imitation = kind == OPENSSL and any(name.startswith("libgnutls.") for name in needed)
        if all(name in defined for name in names) and not imitation:
            library, version = (crypto if kind == OPENSSL else None) or _text_version(elf, kind) or (None, None)
            findings.append((kind, library or _VERSION_TEXT[kind][0][0], version, ""))
    go = golang.plan_go(elf)
    if go is not None:
        findings.append((GO, "crypto/tls", (go.version or "").removeprefix("go") or None, go.reason))
    if not findings and not has_bio and size >= _SMALLEST:
        findings += _signs(elf)
    return _Verdict(tuple(findings), elf.build_id, needed, has_bio, crypto)


def _text_version(elf: Elf, kind: str) -> tuple[str, str] | None:
    """Return (library, version) by the version text in a file's constants."""
    for library, pattern in _VERSION_TEXT[kind]:
        found = _search(elf, pattern)
        if found is not None:
            return found[2].decode() if found[2] else library, found[1].decode()
    return None


def _signs(elf: Elf) -> list[tuple[str, str, str | None, str]]:
    for library, pattern, reason in _SIGNS:
        found = _search(elf, pattern)
        if found is not None:
            return [(OTHER, library, found[1].decode() or None, reason)]
    return []


def _search(elf: Elf, pattern: re.Pattern[bytes]) -> re.Match[bytes] | None:
    for name in (".rodata", ".data.rel.ro"):
        section = elf.sections.get(name)
        if section is not None and section.loaded:
            found = elf.search(section, pattern.search, _LONGEST_TEXT)
            if found is not None:
                return found
    return None
