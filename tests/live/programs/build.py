"""How openssl.c is built: with OpenSSL in each of the places where it is found.

    shared      the system's library
    static      linked into the program, whose symbols are kept
    stripped    linked into the program, whose symbols are gone: cannot be read
    musl        the C library is musl, OpenSSL that of a Python wheel (1.1.1)

Nothing is downloaded: what the distribution does not have, set-up has fetched.
"""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

from tests.live.harness import cannot, environment, program

SOURCE = Path(__file__).with_name("openssl.c")
C_BUILDS = ("shared", "static", "stripped", "musl")
_FLAGS = ("-D_GNU_SOURCE", "-O1")
_STATIC = ("-l:libssl.a", "-l:libcrypto.a", "-lpthread", "-ldl")


def _musl(made: Path, directory: Path) -> list[str]:
    """Return the arguments for musl-gcc, which looks neither for the system's headers nor for its libraries."""
    libraries = directory / "musl"
    libraries.mkdir(exist_ok=True)
    for name in ("libssl", "libcrypto"):
        [found] = made.glob(f"musl/psycopg2_binary.libs/{name}-*.so.*") or [None]
        if found is None:
            cannot("there is no OpenSSL for musl: make .venv/.test fetches one")
        (libraries / found.name).write_bytes(found.read_bytes())
    for index, headers in enumerate(("/usr/include/openssl", f"/usr/include/{platform.machine()}-linux-gnu/openssl")):
        (directory / f"include{index}").mkdir(exist_ok=True)
        link = directory / f"include{index}/openssl"
        if not link.exists():
            link.symlink_to(headers)
    return [
        f"-I{directory}/include0", f"-I{directory}/include1", str(SOURCE), *map(str, libraries.iterdir()),
        "-Wl,-rpath,$ORIGIN/musl", "-Wl,--unresolved-symbols=ignore-in-shared-libs", "-Wl,--no-warnings",
    ]  # fmt: skip


def build(name: str, made: Path, directory: Path) -> Path:
    """Build the program in this way; `made`: where set-up has put what it fetched."""
    binary = directory / f"openssl-{name}"
    if name == "musl":
        command = [program("musl-gcc"), *_FLAGS, "-o", str(binary), *_musl(made, directory)]
    else:
        libraries = ("-lssl", "-lcrypto", "-lpthread") if name == "shared" else _STATIC
        command = [program("gcc"), *_FLAGS, "-o", str(binary), str(SOURCE), *libraries]
    subprocess.run(command, check=True, env=environment(), capture_output=True)
    if name == "stripped":
        subprocess.run([program("strip"), str(binary)], check=True)
    return binary
