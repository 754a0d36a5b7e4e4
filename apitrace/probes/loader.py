"""From the fragments in bpf/ to loaded programs: one text, offsets from BTF, compiled by bcc without kernel headers.

bcc is imported only here, late, and in a child process: its absence must be a clear line and not a traceback, its
compiler's 140 MB must not stay with the capture, and what it prints must not reach the user's terminal. The child
sends what it has compiled as an image, and ends.

Compiling takes seconds, so an image that was loaded is kept (cache.py), under a key made from everything that it
depends on: so flags must not hold what differs between runs. An image that cannot be used is compiled again.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import platform
import re
import struct
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from apitrace.errors import PlatformError
from apitrace.probes import cache
from apitrace.probes.btf import Btf
from apitrace.probes.image import KPROBE, RAW_TRACEPOINT, Image, ImageError, map_of, program_of
from apitrace.probes.image import load as load_image
from apitrace.probes.kernel import Kernel
from apitrace.probes.uprobes import MULTI_SINCE, UPROBE_MULTI

FRAGMENTS = (
    "maps.bpf.c", "filter.bpf.c", "emit.bpf.c", "sessions.bpf.c", "sockets.bpf.c", "process.bpf.c", "tls.bpf.c",
)  # fmt: skip
"""In the order in which they are joined. bcc rewrites map accesses in the main text only, so nothing that touches a
map can be an #include."""

COPY_LIMIT = 1 << 20
"""Bytes of one call that are copied: more than any socket buffer holds by default (net.ipv4.tcp_wmem: 4 MiB at most,
mostly far less), and the bound up to which the kernel's verifier follows the copy loop."""

TAIL_CALLED = ("io", "gather", "bulk")
"""PROGRAM_IO, PROGRAM_GATHER, PROGRAM_BULK in emit.bpf.c."""
PROBE_TAIL_CALLED = ("plaintext",)
"""Of the map probe_programs."""

_IMAGE, _ERROR = b"I", b"E"
"""What begins the child's reply."""

# (structure, member) -> read by the programs as OFF_structure_lastname.
_OFFSETS = (
    ("sock", "__sk_common.skc_family"),
    ("sock", "__sk_common.skc_num"),
    ("sock", "__sk_common.skc_dport"),
    ("sock", "__sk_common.skc_rcv_saddr"),
    ("sock", "__sk_common.skc_daddr"),
    ("sock", "__sk_common.skc_v6_rcv_saddr"),
    ("sock", "__sk_common.skc_v6_daddr"),
    ("sock", "sk_socket"),
    ("sock", "sk_type"),
    ("sock", "sk_protocol"),
    ("sock", "sk_err"),
    ("sock", "sk_shutdown"),
    ("sock", "__sk_common.skc_flags"),
    ("socket", "file"),
    ("socket", "sk"),
    ("file", "f_inode"),
    ("file", "private_data"),
    ("inode", "i_ino"),
    ("inode", "i_mode"),
    ("inet_connection_sock", "icsk_ulp_ops"),
    ("tcp_sock", "write_seq"),
    ("tcp_sock", "copied_seq"),
    ("tcp_sock", "snd_una"),
    ("tcp_sock", "rcv_nxt"),
    ("tcp_sock", "bytes_acked"),
    ("tcp_sock", "bytes_received"),
    ("unix_sock", "addr"),
    ("unix_sock", "peer"),
    ("unix_address", "len"),
    ("unix_address", "name"),
    ("task_struct", "tgid"),
    ("task_struct", "pid"),
    ("task_struct", "files"),
    ("task_struct", "cgroups"),
    ("task_struct", "signal"),
    ("task_struct", "mm"),
    ("signal_struct", "tty"),
    ("signal_struct", "live"),
    ("files_struct", "fdt"),
    ("fdtable", "max_fds"),
    ("fdtable", "fd"),
    ("css_set", "dfl_cgrp"),
    ("cgroup", "kn"),
    ("cgroup", "root"),
    ("cgroup", "self.parent"),
    ("cgroup_root", "hierarchy_id"),
    ("kernfs_node", "id"),
    ("linux_binprm", "filename"),
)


def has_multi(release: str) -> bool:
    """Return whether a kernel of this release (as `uname -r` says) has links of many uprobes that see all threads."""
    numbers = re.match(r"(\d+)\.(\d+)", release)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= MULTI_SINCE


def source_directory() -> Path:
    """Return where the programs' sources are: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "bpf", package.parent / "bpf"):
        if (candidate / "apitrace.h").is_file():
            return candidate
    message = "the kernel programs' sources (bpf/) are missing from this installation: install apitrace again"
    raise PlatformError(message)


def offset_flags(btf: Btf) -> list[str]:
    """Return the -D flags for the kernel's offsets. Raises PlatformError if the kernel lacks one."""
    flags = []
    for structure, path in _OFFSETS:
        # Only "self.parent" needs its whole path to be told apart; of the others the last name says enough.
        name = path.replace(".", "_") if structure == "cgroup" else path.rsplit(".", 1)[-1]
        try:
            flags.append(f"-DOFF_{structure}_{name}={btf.offset(structure, path)}")
        except KeyError as error:
            message = f"this kernel ({platform.release()}) has no {error.args[0]}: it is older than 5.8, or unusual"
            raise PlatformError(message) from error
    # The file's reference count: f_count until Linux 6.12; then f_ref, whose value for one reference is 0.
    try:
        flags += [f"-DOFF_FILE_COUNT={btf.offset('file', 'f_count')}", "-DFILE_COUNT_ONE=1"]
    except KeyError:
        flags += [f"-DOFF_FILE_COUNT={btf.offset('file', 'f_ref')}", "-DFILE_COUNT_ONE=0"]
    return flags


def program_text(directory: Path, machine: str) -> str:
    """Return the one text that bcc compiles. `machine` as `uname -m` says."""
    architecture = directory / f"arch_{machine}.h"
    if not architecture.is_file():
        known = ", ".join(sorted(path.stem[len("arch_") :] for path in directory.glob("arch_*.h")))
        message = f"no support for the {machine} architecture: apitrace knows {known}"
        raise PlatformError(message)
    paths = (directory / "apitrace.h", architecture, *(directory / name for name in FRAGMENTS))
    return "\n".join(f'#line 1 "{path.name}"\n{path.read_text()}' for path in paths)


@dataclass(frozen=True, slots=True)
class Attachment:
    """A raw tracepoint, and the program for it."""

    tracepoint: str
    program: str


@dataclass(frozen=True, slots=True)
class Settings:
    """What the programs are compiled for."""

    switches: dict[str, int]
    """-D name=value."""
    programs: tuple[str, ...]
    """Functions to load for raw tracepoints, beside those that are tail-called."""
    probes: tuple[str, ...]
    """Functions to load for uprobes and return probes."""
    ring_bytes: int
    multi: bool = field(default_factory=lambda: has_multi(platform.release()))
    """Uprobes are placed by links of many."""


def _import_bcc() -> Any:
    try:
        import bcc  # noqa: PLC0415 - late on purpose, see the module's text
    except ImportError as error:
        message = (
            "the bcc Python module is missing: install python3-bpfcc (apt), python3-bcc (dnf), python-bcc (pacman) "
            "or python3-bcc (zypper); the package named bcc on the Python index is another one"
        )
        raise PlatformError(message) from error
    if not hasattr(bcc, "BPF"):
        message = (
            f"the bcc module at {bcc.__file__} is not the BPF Compiler Collection: uninstall it and install the "
            "distribution's python3-bpfcc"
        )
        raise PlatformError(message)
    return bcc


def _compile(settings: Settings, flags: list[str]) -> Image:
    """Compile in this process. bcc makes the maps as well: they go with the process."""
    directory = source_directory()
    os.environ["BCC_KERNEL_SOURCE"] = str(directory / "headers")
    bcc = _import_bcc()
    compiled = bcc.BPF(text=program_text(directory, platform.machine()).encode(), cflags=flags)
    library, module = bcc.libbcc.lib, compiled.module
    # bcc's Python half does not declare these, as it finds its tables by name.
    library.bpf_num_tables.argtypes = [ctypes.c_void_p]
    library.bpf_table_fd_id.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.bpf_table_name.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.bpf_table_name.restype = ctypes.c_char_p
    descriptors = {
        library.bpf_table_name(module, index).decode(): library.bpf_table_fd_id(module, index)
        for index in range(library.bpf_num_tables(module))
    }
    names = {descriptor: name for name, descriptor in descriptors.items()}
    at_probes = (KPROBE, UPROBE_MULTI if settings.multi else 0)
    kinds = dict.fromkeys((*settings.programs, *TAIL_CALLED), (RAW_TRACEPOINT, 0))
    kinds |= dict.fromkeys((*settings.probes, *PROBE_TAIL_CALLED), at_probes)
    return Image(
        tuple(map_of(name, descriptor) for name, descriptor in descriptors.items()),
        tuple(program_of(name, *kind, compiled.dump_func(name.encode()), names) for name, kind in kinds.items()),
    )


def _child(settings: Settings, flags: list[str], to: BinaryIO) -> None:
    """Compile; send the image, or the error, to the parent. What clang prints goes nowhere else."""
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        try:
            to.write(_IMAGE + _compile(settings, flags).encode())
        except PlatformError as error:
            to.write(_ERROR + str(error).encode())
        except Exception as error:  # noqa: BLE001 - bcc raises bare Exception
            sys.stderr.flush()
            said.seek(0)
            output = said.read().decode("utf-8", "replace")
            lines = [line.strip() for line in output.splitlines() if line.strip()]
            telling = next((line for line in lines if "error" in line), lines[-1] if lines else "no detail")
            message = f"the kernel programs could not be compiled: {error} ({telling})"
            to.write(_ERROR + message.replace("\n", " ")[:2000].encode())
        to.flush()


def _compiled(settings: Settings, flags: list[str]) -> bytes:
    """Return an image, encoded, compiled in a child that is gone afterwards. Raises PlatformError."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with os.fdopen(theirs, "wb") as to:
                _child(settings, flags, to)
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as stream:
        reply = stream.read()
    os.waitpid(child, 0)
    if reply.startswith(_IMAGE):
        return reply.removeprefix(_IMAGE)
    message = reply.removeprefix(_ERROR).decode() or "the kernel programs could not be compiled: the compiler crashed"
    raise PlatformError(message)


def _bcc_identity() -> list[str] | None:
    """Return what tells one build of bcc from another, without importing it; None if it is not there."""
    spec = importlib.util.find_spec("bcc")
    if spec is None or spec.origin is None:
        return None
    version = Path(spec.origin).with_name("version.py")
    try:
        return [str(version), version.read_text(), str(version.stat().st_mtime_ns)]
    except (OSError, ValueError):
        return None


def _key(settings: Settings, switches: list[str], btf: Btf) -> str | None:
    """Return what an image for these settings is kept under; None if that cannot be told."""
    bcc = _bcc_identity()
    if bcc is None:
        return None
    directory = source_directory()
    texts = [path.read_text() for path in sorted((directory / "headers").rglob("*.h"))]
    try:
        # What turns the text into an image: this module and those that it gets the parts from.
        texts += [Path(__file__).with_name(name).read_text() for name in ("loader.py", "image.py", "btf.py")]
    except OSError:
        return None
    uname = os.uname()
    made_from = [
        program_text(directory, uname.machine), texts, switches, settings.programs, settings.probes, settings.multi,
        bcc, btf.digest, uname.release, uname.version, uname.machine,
    ]  # fmt: skip
    return hashlib.sha256(orjson.dumps(made_from)).hexdigest()


def load(settings: Settings, btf: Btf) -> Kernel:
    """Load the programs: as they were kept by an earlier start, else newly compiled. Raises PlatformError."""
    switches = [f"-D{name}={value}" for name, value in settings.switches.items()]
    switches += [
        f"-DRING_PAGES={settings.ring_bytes // 4096}",
        f"-DRING_WAKE_BYTES={settings.ring_bytes // 16}",
        f"-DCOPY_LIMIT={COPY_LIMIT}",
        "-Wno-macro-redefined",
    ]
    key = _key(settings, switches, btf)
    kept = cache.read(key) if key is not None else None
    loaded = None
    if kept is not None:
        with contextlib.suppress(ImageError, PlatformError):
            loaded = load_image(Image.decode(kept))
    if loaded is None:
        encoded = _compiled(settings, offset_flags(btf) + switches)
        loaded = load_image(Image.decode(encoded))
        if key is not None:
            cache.write(key, encoded)
    programs, maps = loaded
    # The kernel empties a program array when its last descriptor is closed: so all are handed over.
    kernel = Kernel(programs, maps, multi=settings.multi)
    for table, names in (("programs", TAIL_CALLED), ("probe_programs", PROBE_TAIL_CALLED)):
        for index, name in enumerate(names):
            kernel.update(table, struct.pack("=I", index), struct.pack("=I", programs[name]))
    return kernel
