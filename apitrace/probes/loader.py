"""From the fragments in bpf/ to loaded programs: one text, offsets from BTF, compiled by bcc without kernel headers.

`load` returns a Kernel with every program of the plan loaded and nothing attached yet. bcc is imported here only, and
late: it is the distribution's package, and its absence must be a clear line and not a traceback.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apitrace.errors import PlatformError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apitrace.probes.btf import Btf

FRAGMENTS = ("maps.bpf.c", "filter.bpf.c", "emit.bpf.c", "sockets.bpf.c", "process.bpf.c")
"""In the order in which they are joined. bcc rewrites map accesses in the main text only, so nothing that touches a
map can be an #include."""

COPY_LIMIT = 1 << 20
"""Bytes of one call that are copied: more than any socket buffer holds by default (net.ipv4.tcp_wmem: 4 MiB at most,
mostly far less), and the bound up to which the kernel's verifier follows the copy loop."""

_TAIL_CALLED = (b"io", b"gather", b"bulk")
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
    parts = []
    for path in (directory / "apitrace.h", architecture, *(directory / name for name in FRAGMENTS)):
        parts.append(f'#line 1 "{path.name}"\n{path.read_text()}')
    return "\n".join(parts)


@dataclass(frozen=True, slots=True)
class Attachment:
    """A row of the plan: a raw tracepoint, the program for it."""

    tracepoint: str
    program: str


@dataclass(slots=True)
class Settings:
    """What the programs are compiled for."""

    switches: dict[str, int] = field(default_factory=dict)
    """-D name=value."""
    plan: tuple[Attachment, ...] = ()
    """Attached by `attach`."""
    later: tuple[Attachment, ...] = ()
    """Loaded too, attached one by one when needed."""
    ring_bytes: int = 32 << 20


class Kernel:
    """Loaded programs and their maps: a thin face of bcc, with errors of our own."""

    def __init__(self, bpf: Any, bcc: Any, plan: tuple[Attachment, ...]) -> None:
        self._bpf = bpf
        self._bcc = bcc
        self._plan = plan

    def table(self, name: str) -> Any:
        """Return a map by name, as bcc gives it."""
        return self._bpf[name.encode()]

    def attach(self) -> None:
        """Attach the whole plan. Raises PlatformError."""
        for row in self._plan:
            self.attach_one(row)

    def attach_one(self, row: Attachment) -> None:
        """Attach one program. Raises PlatformError."""
        try:
            self._bpf.attach_raw_tracepoint(tp=row.tracepoint.encode(), fn_name=row.program.encode())
        except Exception as error:  # bcc raises bare Exception
            message = f"this kernel ({platform.release()}) does not let {row.program} attach to {row.tracepoint}"
            raise PlatformError(message) from error

    def detach(self) -> None:
        """Detach everything: no program runs any more; what is in the ring buffer stays readable."""
        for name in list(self._bpf.raw_tracepoint_fds):
            self._bpf.detach_raw_tracepoint(name)

    def open_ring(self, callback: Any) -> None:
        """Have `callback(context, address, size)` called for each record by `poll`."""
        self._bpf[b"events"].open_ring_buffer(callback)

    def poll(self, timeout_ms: int) -> None:
        """Wait until the kernel wakes us or the time is over, then take all there is."""
        self._bpf.ring_buffer_poll(timeout_ms)
        self._bpf.ring_buffer_consume()


@contextlib.contextmanager
def _captured_stderr() -> Iterator[list[str]]:
    """Collect what libbcc and clang print to descriptor 2, which would bury our one line."""
    lines: list[str] = []
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            sink.seek(0)
            lines.extend(sink.read().decode("utf-8", "replace").splitlines())


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


def load(settings: Settings, btf: Btf) -> Kernel:
    """Compile and load. Raises PlatformError, with the compiler's or verifier's last words."""
    directory = source_directory()
    os.environ["BCC_KERNEL_SOURCE"] = str(directory / "headers")
    bcc = _import_bcc()
    text = program_text(directory, platform.machine())
    flags = offset_flags(btf) + [f"-D{name}={value}" for name, value in settings.switches.items()]
    flags += [
        f"-DRING_PAGES={settings.ring_bytes // 4096}",
        f"-DRING_WAKE_BYTES={settings.ring_bytes // 4}",
        f"-DCOPY_LIMIT={COPY_LIMIT}",
        "-Wno-macro-redefined",
    ]
    said: list[str] = []
    try:
        with _captured_stderr() as said:
            bpf = bcc.BPF(text=text.encode(), cflags=flags)
            for row in settings.plan + settings.later:
                bpf.load_func(row.program.encode(), bcc.BPF.RAW_TRACEPOINT)
            programs = bpf[b"programs"]
            for index, name in enumerate(_TAIL_CALLED):
                function = bpf.load_func(name, bcc.BPF.RAW_TRACEPOINT)
                programs[programs.Key(index)] = programs.Leaf(function.fd)
    except Exception as error:  # bcc raises bare Exception
        detail = next((line for line in reversed(said) if line.strip()), "no detail")
        if os.environ.get("APITRACE_DEBUG"):
            sys.stderr.write("\n".join(said) + "\n")
        message = f"the kernel programs could not be loaded: {error} ({detail.strip()})"
        raise PlatformError(message) from error
    return Kernel(bpf, bcc, settings.plan)
