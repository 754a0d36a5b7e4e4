"""From the fragments in bpf/ to loaded programs: one text, offsets from BTF, compiled by bcc without kernel headers.

bcc is imported only here, late, and in a child process: its absence must be a clear line and not a traceback, its
compiler's 140 MB must not stay with the capture, and what it prints must not reach the user's terminal. The child
sends the descriptors of the loaded programs and maps over a socket, and ends.
"""

from __future__ import annotations

import os
import platform
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from apitrace.errors import PlatformError
from apitrace.probes.btf import Btf
from apitrace.probes.kernel import Kernel

FRAGMENTS = ("maps.bpf.c", "filter.bpf.c", "emit.bpf.c", "sockets.bpf.c", "process.bpf.c")
"""In the order in which they are joined. bcc rewrites map accesses in the main text only, so nothing that touches a
map can be an #include."""

COPY_LIMIT = 1 << 20
"""Bytes of one call that are copied: more than any socket buffer holds by default (net.ipv4.tcp_wmem: 4 MiB at most,
mostly far less), and the bound up to which the kernel's verifier follows the copy loop."""

TAIL_CALLED = ("io", "gather", "bulk")
"""PROGRAM_IO, PROGRAM_GATHER, PROGRAM_BULK in emit.bpf.c."""

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
    """Functions to load, beside those that are tail-called."""
    maps: tuple[str, ...]
    """Maps that user space reads or writes."""
    ring_bytes: int


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


def _compile(settings: Settings, flags: list[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Compile and load in this process; return the descriptors of programs and maps."""
    directory = source_directory()
    os.environ["BCC_KERNEL_SOURCE"] = str(directory / "headers")
    bcc = _import_bcc()
    bpf = bcc.BPF(text=program_text(directory, platform.machine()).encode(), cflags=flags)
    names = (*settings.programs, *TAIL_CALLED)
    programs = {name: bpf.load_func(name.encode(), bcc.BPF.RAW_TRACEPOINT).fd for name in names}
    table = bpf[b"programs"]
    for index, name in enumerate(TAIL_CALLED):
        table[table.Key(index)] = table.Leaf(programs[name])
    # The kernel empties a program array when its last descriptor is closed: so it is handed over as well.
    maps = {name: bpf[name.encode()].map_fd for name in (*settings.maps, "events", "programs")}
    return programs, maps


def _child(settings: Settings, flags: list[str], to: socket.socket) -> None:
    """Compile; send the descriptors, or the error, to the parent. What clang prints goes nowhere else."""
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        try:
            programs, maps = _compile(settings, flags)
            reply = {"programs": list(programs), "maps": list(maps)}
            socket.send_fds(to, [orjson.dumps(reply)], [*programs.values(), *maps.values()])
        except PlatformError as error:
            to.sendall(orjson.dumps({"error": str(error)}))
        except Exception as error:  # noqa: BLE001 - bcc raises bare Exception
            sys.stderr.flush()
            said.seek(0)
            output = said.read().decode("utf-8", "replace")
            lines = [line.strip() for line in output.splitlines() if line.strip()]
            telling = next((line for line in lines if "error" in line), lines[-1] if lines else "no detail")
            message = f"the kernel programs could not be loaded: {error} ({telling})"
            to.sendall(orjson.dumps({"error": message.replace("\n", " ")[:2000]}))


def load(settings: Settings, btf: Btf) -> Kernel:
    """Compile and load, in a child that is gone afterwards. Raises PlatformError."""
    flags = offset_flags(btf) + [f"-D{name}={value}" for name, value in settings.switches.items()]
    flags += [
        f"-DRING_PAGES={settings.ring_bytes // 4096}",
        f"-DRING_WAKE_BYTES={settings.ring_bytes // 16}",
        f"-DCOPY_LIMIT={COPY_LIMIT}",
        "-Wno-macro-redefined",
    ]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        try:
            _child(settings, flags, theirs)
        finally:
            os._exit(0)
    theirs.close()
    with ours:
        raw, descriptors, _, _ = socket.recv_fds(ours, 1 << 16, 128)
    os.waitpid(child, 0)
    if not raw:
        message = "the kernel programs could not be loaded: the compiler crashed"
        raise PlatformError(message)
    reply = orjson.loads(raw)
    if "error" in reply:
        raise PlatformError(reply["error"])
    programs = dict(zip(reply["programs"], descriptors, strict=False))
    maps = dict(zip(reply["maps"], descriptors[len(programs) :], strict=True))
    return Kernel(programs, maps)
