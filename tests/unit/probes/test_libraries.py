"""Which TLS a process has: this machine's real processes, and made-up ones under a /proc of our own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from apitrace.probes import libraries
from apitrace.probes.libraries import EXECUTABLE, GNUTLS, GO, LIBRARY, OPENSSL, OTHER, RUNTIME, SHARED, Libraries

SYSTEM = Path("/usr/lib/x86_64-linux-gnu")
LIBSSL, LIBCRYPTO, LIBGNUTLS = (SYSTEM / name for name in ("libssl.so.3", "libcrypto.so.3", "libgnutls.so.30"))
PID = 4121


class FakeProcess:
    """A process under a /proc that is a plain directory."""

    def __init__(self, proc: Path) -> None:
        self.proc = proc
        self.directory = proc / str(PID)
        self.root = self.directory / "root"
        self.root.mkdir(parents=True)
        (self.directory / "map_files").mkdir()
        self._lines: list[str] = []

    def file(self, path: str, content: Path | bytes, *, text: str = "r-xp", suffix: str = "", inode: int = 0) -> Path:
        """Put a file into its root and map it."""
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        self.line(path + suffix, inode or target.stat().st_ino, text)
        return target

    def line(self, path: str, inode: int, text: str = "r-xp") -> str:
        """Map what may or may not be there; return the mapping's span."""
        span = f"7f00{len(self._lines):04x}0000-7f00{len(self._lines):04x}1000"
        self._lines.append(f"{span} {text} 00000000 fe:00 {inode:<26} {path}\n")
        (self.directory / "maps").write_text("".join(self._lines))
        return span

    def stacks(self) -> list[libraries.Stack]:
        """Return what is found."""
        return Libraries(self.proc).stacks(PID)


@pytest.fixture
def process(tmp_path: Path) -> FakeProcess:
    return FakeProcess(tmp_path / "proc")


def compiled(directory: Path, source: str, *flags: str) -> Path:
    (directory / "source.c").write_text(source)
    target = directory / "compiled"
    subprocess.run(["gcc", "-O1", *flags, "-o", str(target), str(directory / "source.c")], check=True)
    return target


@contextmanager
def running(*command: str) -> Iterator[int]:
    """Run a program that says a line when it is ready, and then waits for its input to end."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline()
        yield child.pid
        child.stdin.close()


WAIT_PYTHON = "import {module}, sys; print('ready', flush=True); sys.stdin.read()"


# Real processes


def test_python_has_the_systems_openssl_and_its_libcrypto() -> None:
    with running("/usr/bin/python3", "-c", WAIT_PYTHON.format(module="ssl")) as pid:
        (stack,) = Libraries().stacks(pid)
        version = subprocess.run(["openssl", "version"], check=True, capture_output=True, text=True).stdout.split()[1]
        assert (stack.kind, stack.library, stack.version, stack.linked) == (OPENSSL, "OpenSSL", version, SHARED)
        assert (stack.where.path, stack.where.file) == (str(LIBSSL), f"/proc/{pid}/root{LIBSSL}")
        assert (stack.where.device, stack.where.inode) == (LIBSSL.stat().st_dev, LIBSSL.stat().st_ino)
        assert stack.bio.path == str(LIBCRYPTO)
        assert len(stack.build_id) == 40
        assert stack.reason == ""


def test_a_program_without_tls_has_none() -> None:
    with running("/usr/bin/python3", "-c", WAIT_PYTHON.format(module="os")) as pid:
        assert Libraries().stacks(pid) == []


def test_node_has_openssl_inside_its_executable() -> None:
    node = shutil.which("node")
    with running(node, "-e", "console.log('ready'); process.stdin.resume()") as pid:
        (stack,) = Libraries().stacks(pid)
        script = "console.log(process.versions.openssl.split(/[-+]/)[0])"
        version = subprocess.run([node, "-e", script], check=True, capture_output=True, text=True).stdout.strip()
        assert (stack.kind, stack.library, stack.version, stack.linked) == (OPENSSL, "OpenSSL", version, EXECUTABLE)
        assert stack.bio == stack.where


@pytest.mark.skipif(shutil.which("javac") is None, reason="no JDK is installed")
def test_java_is_named_and_not_readable(tmp_path: Path) -> None:
    program = "public class Wait { public static void main(String[] a) throws Exception "
    (tmp_path / "Wait.java").write_text(program + '{ System.out.println("ready"); System.in.read(); } }')
    with running("java", str(tmp_path / "Wait.java")) as pid:
        found = [stack for stack in Libraries().stacks(pid) if stack.library == "JSSE"]
        (stack,) = found
        assert (stack.kind, stack.linked) == (OTHER, RUNTIME)
        assert stack.version.split(".")[0].isdigit()
        assert stack.reason == "Java's own TLS is compiled while it runs: there is nothing to probe"


def test_a_deleted_file_is_opened_through_its_mapping(tmp_path: Path) -> None:
    # What an upgrade does to a running program's library.
    copy = tmp_path / "libssl-copy.so.3"
    shutil.copy(LIBSSL, copy)
    load = f"import ctypes, sys; ctypes.CDLL({str(copy)!r}); print('ready', flush=True); sys.stdin.read()"
    with running("/usr/bin/python3", "-c", load) as pid:
        inode = copy.stat().st_ino
        replacement = tmp_path / "new"
        replacement.write_bytes(b"not a library at all")
        replacement.rename(copy)
        (stack,) = Libraries().stacks(pid)
        assert (stack.where.path, stack.where.inode) == (str(copy), inode)
        assert stack.where.file.startswith(f"/proc/{pid}/map_files/")
        assert stack.kind == OPENSSL


def test_a_process_that_is_gone_has_none() -> None:
    with running("/usr/bin/python3", "-c", WAIT_PYTHON.format(module="ssl")) as pid:
        pass
    assert Libraries().stacks(pid) == []
    assert Libraries().mapped(pid) == []


# Made-up processes


def test_each_bundled_libssl_goes_with_the_libcrypto_that_it_asks_for(process: FakeProcess) -> None:
    patched = LIBSSL.read_bytes().replace(b"libcrypto.so.3\0", b"libcrypto-a.so\0")
    assert patched != LIBSSL.read_bytes()
    process.file("/usr/lib/libcrypto.so.3", LIBCRYPTO)
    process.file("/venv/numbers.libs/libssl-8bd944e8.so.3", patched)
    process.file("/venv/numbers.libs/libcrypto-a.so", LIBCRYPTO)
    process.file("/usr/lib/libssl.so.3", LIBSSL)
    found = {stack.where.path: stack for stack in process.stacks()}
    assert {path: stack.bio.path for path, stack in found.items()} == {
        "/venv/numbers.libs/libssl-8bd944e8.so.3": "/venv/numbers.libs/libcrypto-a.so",
        "/usr/lib/libssl.so.3": "/usr/lib/libcrypto.so.3",
    }
    assert {(stack.library, stack.linked) for stack in found.values()} == {("OpenSSL", SHARED)}


def test_gnutls_is_found_with_its_version_and_its_imitation_of_openssl_is_not(process: FakeProcess) -> None:
    process.file("/usr/lib/libgnutls.so.30", LIBGNUTLS)
    imitation = SYSTEM / "libgnutls-openssl.so.27"
    if imitation.exists():
        process.file("/usr/lib/libgnutls-openssl.so.27", imitation)
    (stack,) = process.stacks()
    query = ["dpkg-query", "-W", "-f", "${Version}", "libgnutls30"]
    version = subprocess.run(query, check=True, capture_output=True, text=True).stdout.split("-")[0]
    assert (stack.kind, stack.library, stack.version) == (GNUTLS, "GnuTLS", version)


STATIC = """
const char version[] = "%s";
int SSL_read(void *s, void *b, int n) { return n; }
int SSL_write(void *s, const void *b, int n) { return n; }
int BIO_write(void *s, const void *b, int n) { return n; }
int main(void) { return version[0]; }
"""


@pytest.mark.parametrize(
    ("text", "library", "version"),
    [
        ("OpenSSL 3.5.4 30 Sep 2025", "OpenSSL", "3.5.4"),
        ("OpenSSL 1.1.1w  11 Sep 2023", "OpenSSL", "1.1.1w"),
        ("OpenSSL 3.0.19+quic 27 Jan 2026", "OpenSSL", "3.0.19"),
        ("OpenSSL 1.1.1 (compatible; BoringSSL)", "BoringSSL", "1.1.1"),
        ("OpenSSL 1.1.1 (compatible; AWS-LC 1.40.0)", "AWS-LC", "1.1.1"),
        ("LibreSSL 3.8.2", "LibreSSL", "3.8.2"),
        ("OpenSSL 9 is not out", "OpenSSL", None),
    ],
)
def test_an_executable_that_defines_the_functions_itself(
    process: FakeProcess, tmp_path: Path, text: str, library: str, version: str | None
) -> None:
    target = process.file("/app/server", compiled(tmp_path, STATIC % text))
    (process.directory / "exe").symlink_to(target)
    (stack,) = process.stacks()
    assert (stack.kind, stack.library, stack.version, stack.linked) == (OPENSSL, library, version, EXECUTABLE)
    assert stack.bio == stack.where


def test_a_library_that_carries_openssl_inside(process: FakeProcess, tmp_path: Path) -> None:
    library = compiled(tmp_path, STATIC % "OpenSSL 3.5.4 30 Sep 2025", "-shared", "-fPIC")
    process.file("/opt/python/lib/libpython3.13.so.1.0", library)
    (stack,) = process.stacks()
    assert (stack.kind, stack.linked) == (OPENSSL, LIBRARY)


@pytest.mark.parametrize(
    ("text", "library", "version"),
    [
        ("/src/index/rustls-0.23.46/src/conn.rs", "rustls", "0.23.46"),
        ("../ssl/ssl_lib.c", "OpenSSL", None),
        ("third_party/boringssl/src/ssl/ssl_lib.cc", "BoringSSL", None),
    ],
)
def test_what_was_linked_in_and_stripped_is_named_by_its_error_messages(
    process: FakeProcess, tmp_path: Path, text: str, library: str, version: str | None
) -> None:
    source = f'const char sign[] = "{text}"; const char filler[300000] = {{1}}; int main(void) {{ return sign[0]; }}'
    process.file("/app/stripped", compiled(tmp_path, source, "-s"))
    (stack,) = process.stacks()
    assert (stack.kind, stack.library, stack.version) == (OTHER, library, version)
    assert stack.reason


def test_go_is_found_with_its_version(process: FakeProcess) -> None:
    go = Path(shutil.which("go")).resolve()
    target = process.file("/app/go", go)
    (process.directory / "exe").symlink_to(target)
    (stack,) = process.stacks()
    said = subprocess.run([str(go), "version"], check=True, capture_output=True, text=True, cwd="/").stdout
    assert (stack.kind, stack.library, stack.version, stack.reason) == (GO, "crypto/tls", said.split()[2][2:], "")
    assert stack.linked == EXECUTABLE


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("libssl3.so", "NSS"),
        ("libmbedtls.so.14", "Mbed TLS"),
        ("libwolfssl.so.35", "wolfSSL"),
        ("libs2n.so.1", "s2n-tls"),
    ],
)
def test_libraries_that_cannot_be_read_are_named(process: FakeProcess, name: str, library: str) -> None:
    process.file(f"/usr/lib/{name}", b"whatever")
    (stack,) = process.stacks()
    assert (stack.kind, stack.library, stack.version, stack.linked) == (OTHER, library, None, SHARED)
    assert stack.reason == f"{library} is not supported"


@pytest.mark.parametrize(
    ("jvm", "release", "version"),
    [
        ("/opt/java/lib/server/libjvm.so", "/opt/java/release", "21.0.4"),
        ("/opt/java/jre/lib/amd64/server/libjvm.so", "/opt/java/jre/release", "21.0.4"),
        ("/usr/lib/jvm/java-11-openjdk/lib/server/libjvm.so", None, "11"),
        ("/srv/runtime/lib/server/libjvm.so", None, None),
    ],
)
def test_the_version_of_java_is_in_its_release_file_or_its_path(
    process: FakeProcess, jvm: str, release: str | None, version: str | None
) -> None:
    process.file(jvm, b"")
    if release:
        (process.root / release[1:]).write_text('IMPLEMENTOR="x"\nJAVA_VERSION="21.0.4"\n')
    (stack,) = process.stacks()
    assert (stack.library, stack.version) == ("JSSE", version)


def test_a_file_mapped_twice_or_under_two_names_is_one(process: FakeProcess) -> None:
    first = process.file("/usr/lib/libssl.so.3", LIBSSL)
    process.line("/usr/lib/libssl.so.3", first.stat().st_ino)
    os.link(first, process.root / "other.so")
    process.line("/other.so", first.stat().st_ino)
    assert len(process.stacks()) == 1


def test_only_mappings_of_code_count(process: FakeProcess) -> None:
    process.file("/backup/libssl.so.3", LIBSSL, text="r--p")
    assert process.stacks() == []


def test_a_name_with_a_line_break_is_read_as_the_kernel_writes_it(process: FakeProcess) -> None:
    (process.root / "a\nb").write_bytes(LIBSSL.read_bytes())
    process.line("/a\\012b", (process.root / "a\nb").stat().st_ino)
    (stack,) = process.stacks()
    assert stack.where.path == "/a\nb"


def test_what_is_not_a_file_is_passed_over(process: FakeProcess) -> None:
    os.mkfifo(process.root / "pipe")
    (process.root / "directory").mkdir()
    (process.root / "link").symlink_to(LIBSSL)
    for path in ("/pipe", "/directory", "/link", "/missing", "/memfd:jit (deleted)", "/dev/zero", "/SYSV00000000"):
        process.line(path, 17)
    process.file("/text.so", b"#!/bin/sh\n" * 1000)
    process.file("/cut.so", LIBSSL.read_bytes()[:5000])
    assert process.stacks() == []


def test_a_replaced_file_is_opened_through_its_mapping_and_not_by_its_name(
    process: FakeProcess, tmp_path: Path
) -> None:
    process.file("/usr/lib/libssl.so.3", b"something else by now", inode=99)
    shutil.copy(LIBSSL, tmp_path / "mapped")
    span = process.line("/usr/lib/libssl.so.3", 99)  # a second span of the same mapping changes nothing
    for name in (span, span.replace("0001", "0000")):
        (process.directory / "map_files" / name).symlink_to(tmp_path / "mapped")
    (stack,) = process.stacks()
    assert stack.kind == OPENSSL
    assert "/map_files/" in stack.where.file


def test_on_an_overlay_file_system_whose_inode_numbers_differ_the_name_is_used(process: FakeProcess) -> None:
    target = process.file("/usr/lib/libssl.so.3", LIBSSL, inode=99)
    (process.directory / "map_files" / "7f0000000000-7f0000001000").symlink_to(target)
    (stack,) = process.stacks()
    assert stack.where.file == f"{process.root}/usr/lib/libssl.so.3"


def test_a_file_is_judged_once_until_it_changes(process: FakeProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    target = process.file("/usr/lib/libssl.so.3", LIBSSL)
    judged = []
    inspect = libraries._inspect
    monkeypatch.setattr(libraries, "_inspect", lambda file, size: judged.append(file) or inspect(file, size))
    finder = Libraries(process.proc)
    assert [len(finder.stacks(PID)) for _ in range(3)] == [1, 1, 1]
    assert len(judged) == 1
    target.write_bytes(b"changed in place")
    assert finder.stacks(PID) == []
    assert len(judged) == 2


def test_verdicts_do_not_pile_up(process: FakeProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "_MOST_FILES", 3)
    for number in range(10):
        process.file(f"/lib{number}.so", b"x")
    finder = Libraries(process.proc)
    finder.stacks(PID)
    assert len(finder._verdicts) <= 3


def test_a_file_that_goes_while_it_is_looked_at_is_passed_over(
    process: FakeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = process.file("/usr/lib/libssl.so.3", LIBSSL)
    inspect = libraries._inspect

    def vanish(file: str, size: int) -> object:
        target.unlink()
        return inspect(file, size)

    monkeypatch.setattr(libraries, "_inspect", vanish)
    assert process.stacks() == []
    assert Libraries(process.proc).stacks(PID) == []


def test_a_file_that_could_not_be_opened_through_one_process_is_judged_through_the_next(
    process: FakeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first ended meanwhile, and with it the path; the file has not changed."""
    process.file("/usr/lib/libssl.so.3", LIBSSL)
    inspect, gone = libraries._inspect, [True]
    monkeypatch.setattr(
        libraries, "_inspect", lambda file, size: inspect("/nowhere" if gone.pop() else file, size) if gone
        else inspect(file, size)
    )  # fmt: skip
    finder = Libraries(process.proc)
    assert [len(finder.stacks(PID)) for _ in range(2)] == [0, 1]


def test_the_tests_own_interpreter_can_be_asked_about() -> None:
    assert sys.executable
    assert {found.path for found in Libraries().mapped(os.getpid())} >= {str(Path("/proc/self/exe").resolve())}
