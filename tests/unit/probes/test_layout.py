"""Where fields lie in SSL objects: in code written for the purpose, and in every OpenSSL of this machine.

The oracle for the former is the compiler, which knows the structures; for the latter a handshake inside a process that
has the library, comparing what lies at each path with what the library's own function returns (ssl_truth.c).
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path as FilePath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apitrace.probes import layout
from apitrace.probes.elf import Elf, Section
from apitrace.probes.layout import Field, Path, SslLayout, loader_hook, ssl_layout

LIBRARIES = FilePath("/usr/lib/x86_64-linux-gnu")
LIBSSL = LIBRARIES / "libssl.so.3"
NODE = FilePath(shutil.which("node") or "node")
LOADER = FilePath("/lib64/ld-linux-x86-64.so.2")
TRUTH = FilePath(__file__).with_name("ssl_truth.c")

OPENSSL_11 = """
struct s3 { char before[184]; unsigned char client_random[32]; char more[700]; unsigned char *alpn; size_t alpn_len; };
struct ssl { int version; char before[52]; int server; int shutdown; char more[100]; struct s3 *s3; };
size_t SSL_get_client_random(const struct ssl *s, unsigned char *out, size_t n)
{
    if (n == 0) return 32;
    if (n > 32) n = 32;
    memcpy(out, s->s3->client_random, n);
    return n;
}
void SSL_get0_alpn_selected(const struct ssl *s, const unsigned char **data, unsigned *len)
{
    *data = NULL;
    if (s->s3) *data = s->s3->alpn;
    *len = *data == NULL ? 0 : (unsigned)s->s3->alpn_len;
}
int SSL_is_server(const struct ssl *s) { return s->server; }
int SSL_version(const struct ssl *s) { return s->version; }
int SSL_get_shutdown(const struct ssl *s) { return s->shutdown; }
"""
# What it is: of OpenSSL 3.2 and later, where an SSL may also be one of QUIC, which leads to one of TLS.
OPENSSL_32 = """
struct ssl { int type; char before[68]; int version; char more[44]; int server; int shutdown; char yet[264];
             unsigned char client_random[32]; char yet_more[784]; unsigned char *alpn; size_t alpn_len; };
extern struct ssl *quic_inner(const struct ssl *s);
static const struct ssl *inner(const struct ssl *s)
{
    return s == NULL ? NULL : s->type == 0 ? s : s->type & 0x80 ? quic_inner(s) : NULL;
}
size_t SSL_get_client_random(const struct ssl *s, unsigned char *out, size_t n)
{
    const struct ssl *c = inner(s);
    if (c == NULL) return 0;
    if (n == 0) return 32;
    if (n > 32) n = 32;
    memcpy(out, c->client_random, n);
    return n;
}
void SSL_get0_alpn_selected(const struct ssl *s, const unsigned char **data, unsigned *len)
{
    const struct ssl *c = inner(s);
    if (c == NULL) { *data = NULL; *len = 0; return; }
    *data = c->alpn;
    *len = *data == NULL ? 0 : (unsigned)c->alpn_len;
}
int SSL_is_server(const struct ssl *s) { const struct ssl *c = inner(s); return c == NULL ? 0 : c->server; }
int SSL_version(const struct ssl *s)
{
    const struct ssl *c = inner(s);
    return s->type == 0x80 || s->type == 0x81 ? 1 : c == NULL ? 0 : c->version;
}
int SSL_get_shutdown(const struct ssl *s) { const struct ssl *c = inner(s); return c == NULL ? 0 : c->shutdown; }
"""
BORINGSSL = """
struct session { char before[40]; unsigned char *early_alpn; size_t early_alpn_len; };
struct hs { struct session *early_session; char before[8]; unsigned before_bits : 5; unsigned in_early_data : 1; };
struct s3 { char before[48]; unsigned char client_random[32]; struct hs *hs;
            int read_shutdown, write_shutdown; char more[392]; unsigned char *alpn; size_t alpn_len; };
struct ssl { void *method; char before[40]; struct s3 *s3; char more[108];
             unsigned before_bits : 3; unsigned server : 1; };
size_t SSL_get_client_random(const struct ssl *s, unsigned char *out, size_t n)
{
    if (n == 0) return 32;
    if (n > 32) n = 32;
    memcpy(out, s->s3->client_random, n);
    return n;
}
static int early(const struct ssl *s) { return s->s3->hs == NULL ? 0 : s->s3->hs->in_early_data; }
void SSL_get0_alpn_selected(const struct ssl *s, const unsigned char **data, unsigned *len)
{
    if (early(s) && !s->server) {
        *data = s->s3->hs->early_session->early_alpn;
        *len = (unsigned)s->s3->hs->early_session->early_alpn_len;
    } else {
        *data = s->s3->alpn;
        *len = (unsigned)s->s3->alpn_len;
    }
}
int SSL_is_server(const struct ssl *s) { return s->server; }
int SSL_get_shutdown(const struct ssl *s)
{
    return (s->s3->read_shutdown != 0 ? 2 : 0) | (s->s3->write_shutdown != 0 ? 1 : 0);
}
"""
FAMILIES = {"1.1": OPENSSL_11, "3.2": OPENSSL_32, "boring": BORINGSSL}
EXPECTED = {
    "1.1": (Path((168,), 184), Path((168, 920), 0), Path((168,), 928), Path((), 56), Path((), 0), Path((), 60), None),
    "3.2": (Path((), 392), Path((1208,), 0), Path((), 1216), Path((), 120), Path((), 72), Path((), 124), Path((), 0)),
    "boring": (Path((48,), 48), Path((48, 488), 0), Path((48,), 496), Path((), 164), None, None, None),
}
Build = Callable[[str, str], FilePath]


def run(*command: object, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    directory = tmp_path_factory.mktemp("layout")

    def built(text: str, flags: str) -> FilePath:
        number = len(list(directory.iterdir()))
        source, library = directory / f"{number}.c", directory / f"{number}.so"
        source.write_text("#include <string.h>\n" + text)
        run("gcc", "-shared", "-fPIC", "-Wno-attributes", *flags.split(), "-o", library, source)
        return library

    return built


def layout_of(path: FilePath) -> SslLayout:
    with Elf.open(path) as elf:
        return ssl_layout(elf)


def paths(found: SslLayout) -> tuple[Path | None, ...]:
    fields = (found.alpn_len, found.server, found.version, found.shutdown, found.type)
    return (found.client_random, found.alpn, *(None if field is None else field.path for field in fields))


@pytest.mark.parametrize(
    "flags",
    ["-O0", "-O1", "-O2", "-O3", "-Os", "-O2 -fno-builtin", "-O0 -fstack-protector-all",
     "-O2 -fzero-call-used-regs=used", "-O2 -fcf-protection=full -mno-sse", "-O2 -fno-plt"],
)  # fmt: skip
@pytest.mark.parametrize("family", FAMILIES)
def test_fields_are_where_the_compiler_put_them(build: Build, family: str, flags: str) -> None:
    found = layout_of(build(FAMILIES[family], flags))
    assert paths(found) == EXPECTED[family]
    assert set(found.reasons) == ({"version", "shutdown"} if family == "boring" else set())


def test_a_role_in_a_bit_is_found_with_its_mask(build: Build) -> None:
    server = layout_of(build(BORINGSSL, "-O2")).server
    assert server is not None
    assert server.mask << server.shift == 8


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return 32;", "the way of the value through SSL_get_client_random is not understood"),
        ("memcpy(out, s + 8, 16); return n;", "the way of the value through SSL_get_client_random is not understood"),
        ("memcpy(out, s[n] ? s + 8 : s + 80, n); return n;", "SSL_get_client_random takes it from one of several"),
        ("for (size_t i = 0; i < n; i++) out[i] = s[8 + i] ^ 1; return n;", "the way of the value"),
        ("for (;;) out[0] = s[0];", "the way of the value"),
        ("return SSL_get_client_random(s, out, n) + 1;", "the way of the value"),
    ],
)
def test_what_is_not_plainly_one_place_is_not_known_and_it_is_said_why(build: Build, body: str, reason: str) -> None:
    text = f"size_t SSL_get_client_random(const char *s, char *out, size_t n) {{ {body} }}"
    found = layout_of(build(text, "-O1"))
    assert found.client_random is None
    assert found.reasons["client_random"].startswith(reason)
    assert found.reasons["alpn"] == "the file does not define SSL_get0_alpn_selected"


class CodeOnly(Elf):
    """Code without a file around it, all of it one function."""

    def __init__(self, code: bytes) -> None:
        self._code = code

    def read(self, address: int, size: int) -> bytes:
        return self._code[address : address + size]

    def bounds(self, address: int) -> tuple[int, int] | None:
        return (0, len(self._code)) if 0 <= address < len(self._code) else None

    def section_at(self, address: int) -> Section | None:
        return Section(".text", 1, 2, 0, 0, len(self._code), 0) if 0 <= address < len(self._code) else None


PIECES = st.sampled_from([bytes.fromhex(code) for code in (
    "488b07", "8b4738", "488b4748", "488906", "890a", "8906", "4885c0", "85c0", "7402", "75f8", "ebfa", "c3", "50",
    "58", "5d", "c9", "e800000000", "e8f0ffffff", "f3a4", "f3a5", "f348a5", "0f1006", "0f114610", "488d4718", "4889f8",
    "24f8", "c0e803", "83e001", "0fb6c0", "0f94c0", "480f46c2", "4829f1", "4883e6f8", "48c1e03f", "4801c0", "8ed8",
    "660f6e07", "f30f7e06", "660fd606", "488b04c7", "8a27", "86e0", "0fb100", "48f7e1", "480fbec0", "ffe0",
    "ff2500000000", "64488b0425", "0f0b", "8f06", "480fba2f05", "d1e8", "48d3e8", "4831d2", "6631d2",
)])  # fmt: skip
"""Loads, stores, copies and branches of accessors, and what else bends registers."""


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.binary(max_size=120), st.lists(PIECES, max_size=60).map(b"".join)))
def test_any_code_can_be_run(code: bytes) -> None:
    for _, _, arguments, read in layout._ASKED:
        for way in itertools.islice(layout._Run(CodeOnly(code), 0, arguments).ways(), 64):
            read(way)


# Every OpenSSL there is


def bundled() -> list[tuple[FilePath, FilePath]]:
    """Return (libcrypto, libssl) of each package in this environment that brings its own."""
    found = []
    for place in map(FilePath, sys.path):
        for ssl in sorted(place.glob("*.libs/libssl-*")) if place.name == "site-packages" else ():
            found += [(crypto, ssl) for crypto in ssl.parent.glob("libcrypto-*")]
    return found


SUBJECTS: dict[str, tuple[FilePath, tuple[FilePath, ...], tuple[FilePath | str, ...]]] = {
    "system": (LIBSSL, (LIBSSL,), ("/bin/true",)),
    "node": (NODE, (), (NODE, "--version")),
    **{ssl.name: (ssl, (crypto, ssl), ("/bin/true",)) for crypto, ssl in bundled()},
}
"""Name -> (file with the library, what to preload, program)."""


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> tuple[FilePath, FilePath]:
    """Return (the program to preload, key and certificate)."""
    directory = tmp_path_factory.mktemp("truth")
    library, key, certificate, both = (directory / name for name in ("truth.so", "key", "certificate", "both.pem"))
    run("gcc", "-shared", "-fPIC", "-Wno-strict-prototypes", "-o", library, TRUTH, "-ldl")
    run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "2",
        "-subj", "/CN=localhost")  # fmt: skip
    both.write_text(key.read_text() + certificate.read_text())
    return library, both


def spelled(found: SslLayout) -> str:
    """Return a layout as ssl_truth.c takes it."""
    lines = []
    for name in SslLayout._fields[:-1]:
        value = getattr(found, name)
        if value is not None:
            path = value.path if isinstance(value, Field) else value
            size = value.size if isinstance(value, Field) else 32 if name == "client_random" else 2
            lines.append(f"{name} {','.join(map(str, path.derefs)) or '-'} {path.offset} {size}")
    return "\n".join(lines)


def observed(
    truth: tuple[FilePath, FilePath],
    found: SslLayout,
    preload: Sequence[FilePath],
    program: Sequence[object],
    **more: str,
) -> dict[tuple[str, str], str]:
    environment = {"LD_PRELOAD": " ".join(map(str, [*preload, truth[0]])), "FIELDS": spelled(found)}
    out = run(*program, **environment, PEM=str(truth[1]), **more)
    return {(end, name): value for end, name, value in (line.split(" ") for line in out.splitlines())}


@pytest.mark.parametrize("version", ["0x304", "0x303"], ids=["TLS 1.3", "TLS 1.2"])
@pytest.mark.parametrize("subject", SUBJECTS)
def test_what_lies_there_is_what_the_librarys_own_functions_return(
    truth: tuple[FilePath, FilePath], subject: str, version: str
) -> None:
    file, preload, program = SUBJECTS[subject]
    found = layout_of(file)
    assert found.reasons == {}
    seen = observed(truth, found, preload, program, MAX_VERSION=version)
    for end in ("begun", "client", "server"):
        for name in ("client_random", "alpn", "alpn_len", "server", "version", "shutdown"):
            assert seen[end, name] == seen[end, name + "="], (end, name)
        assert seen.get((end, "type"), "00000000") == "00000000"
    assert seen["client", "client_random"] == seen["server", "client_random"] != "00" * 32
    assert bytes.fromhex(seen["client", "alpn"]) == b"h2"
    assert seen["begun", "alpn"] == ""
    assert (seen["client", "server"], seen["server", "server"]) == ("00000000", "01000000")
    assert (seen["client", "shutdown"], seen["server", "shutdown"]) == ("01000000", "02000000")  # sent, received


def test_an_openssl_newer_than_the_systems_is_among_those_tested() -> None:
    typed = [name for name, (file, *_) in SUBJECTS.items() if layout_of(file).type is not None]
    assert typed, "psycopg2-binary's OpenSSL is 3.2 or later"


def test_a_file_without_the_functions_has_no_layout() -> None:
    found = layout_of(LIBRARIES / "libcrypto.so.3")
    assert set(paths(found)) == {None}
    assert found.reasons["server"] == "the file does not define SSL_is_server"


# The dynamic loader


def test_glibcs_hook_is_the_function_that_it_exports() -> None:
    with Elf.open(LOADER) as elf:
        hook = loader_hook(elf)
    listed = run("nm", "-D", "--defined-only", LOADER)
    symbols = {match[2]: int(match[1], 16) for match in re.finditer(r"^(\w+) \w (\w+)", listed, re.MULTILINE)}
    assert hook is not None
    assert hook.entry.address == symbols["_dl_debug_state"]
    assert hook.state == symbols["_r_debug"] + 24


def test_a_file_that_is_no_loader_has_no_hook() -> None:
    for path in (LIBSSL, NODE):
        with Elf.open(path) as elf:
            assert loader_hook(elf) is None


LIBRARY = """
#include <stdio.h>
__attribute__((constructor)) static void begin(void) {{ fputs("constructor {name}\\n", stderr); }}
int {name}(void) {{ return 0; }}
"""
PROGRAM = """
#include <dlfcn.h>
#include <stdio.h>
extern int needed(void);
int main(int count, char **arguments)
{
    fputs("main\\n", stderr);
    void *loaded = dlopen(arguments[1], RTLD_NOW);
    fputs(loaded ? "opened\\n" : "failed\\n", stderr);
    return needed();
}
"""
SCRIPT = """
import gdb, os
hook, state = int(os.environ["HOOK"]), int(os.environ["STATE"])
gdb.execute("set pagination off")
gdb.execute("starti", to_string=True)
maps = lambda: open(f"/proc/{gdb.selected_inferior().pid}/maps").read().splitlines()
base = next(int(line.split("-")[0], 16) for line in maps() if " 00000000 " in line and "/ld-" in line)
class Hook(gdb.Breakpoint):
    def stop(self):
        code = " ".join(line for line in maps() if " r-xp " in line)
        mapped = [word for word in ("liblate", "libneeded") if word in code]
        now = int.from_bytes(gdb.selected_inferior().read_memory(base + state, 4).tobytes(), "little")
        gdb.write(f"hook {now} {' '.join(mapped)}\\n", gdb.STDERR)
        return False
Hook(f"*{base + hook:#x}")
gdb.execute("continue")
"""


@pytest.mark.skipif(not shutil.which("gdb"), reason="gdb is not installed")
def test_the_hook_is_called_when_all_is_mapped_and_before_any_constructor(tmp_path: FilePath) -> None:
    for name in ("needed", "late"):
        (tmp_path / f"{name}.c").write_text(LIBRARY.format(name=name))
        run("gcc", "-shared", "-fPIC", "-o", tmp_path / f"lib{name}.so", tmp_path / f"{name}.c")
    (tmp_path / "program.c").write_text(PROGRAM)
    run("gcc", "-o", tmp_path / "program", tmp_path / "program.c", tmp_path / "libneeded.so", "-ldl")
    (tmp_path / "script.py").write_text(SCRIPT)
    with Elf.open(LOADER) as elf:
        hook = loader_hook(elf)
    assert hook is not None
    program = [tmp_path / "program", tmp_path / "liblate.so"]
    command = ["gdb", "-nx", "-batch", "-x", tmp_path / "script.py", "--args", *program]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True,
        env={**os.environ, "HOOK": str(hook.entry.address), "STATE": str(hook.state)},
    )  # fmt: skip
    said = re.findall(r"^(hook .*|constructor \w+|main|opened)$", done.stderr, re.MULTILINE)
    assert [line.rstrip() for line in said] == [
        "hook 1",
        "hook 0 libneeded",
        "constructor needed",
        "main",
        "hook 1 liblate libneeded",
        "hook 0 liblate libneeded",
        "constructor late",
        "opened",
    ]
