"""What tracing needs of this machine, and whether it is there: each need is looked at on its own, nothing is changed.

What cannot be told, for lack of privilege say, is neither there nor missing: `met` is None.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
from pathlib import Path
from typing import NamedTuple

from apitrace.errors import PlatformError
from apitrace.probes import uprobes
from apitrace.probes.btf import VMLINUX, Btf
from apitrace.probes.loader import has_multi

CAPABILITIES = {"CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
"""Their numbers (include/uapi/linux/capability.h)."""
_CAP_SYS_PTRACE = 19

_OLDEST = (5, 8)
_OLDEST_TLS = (5, 15)
"""With cookies for uprobes (bpf_get_attach_cookie)."""
_TESTED = "x86_64"
_UNTESTED = "aarch64"


class Need(NamedTuple):
    """Something that tracing needs."""

    name: str
    met: bool | None
    """None: cannot be told."""
    text: str
    """In words: what was found, or what to do."""
    vital: bool = True
    """Without it nothing is traced; else only TLS is not read."""


def effective_capabilities(status: Path = Path("/proc/self/status")) -> int:
    """Return this process's effective capabilities as a bit mask."""
    lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    return int(next(line for line in lines if line.startswith("CapEff")).split()[1], 16)


def may_trace(mask: int) -> bool:
    """Return whether these capabilities allow loading programs and placing probes."""
    has = {name: bool(mask >> number & 1) for name, number in CAPABILITIES.items()}
    return has["CAP_SYS_ADMIN"] or (has["CAP_BPF"] and has["CAP_PERFMON"])


def may_look_into_others(mask: int) -> bool:
    """Return whether these capabilities open other users' /proc/PID."""
    return bool(mask >> _CAP_SYS_PTRACE & 1)


def _at_least(version: tuple[int, int]) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", platform.release())
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= version


def _kernel() -> Need:
    release, machine = platform.release(), platform.machine()
    recent = _at_least(_OLDEST)
    known = machine in (_TESTED, _UNTESTED)
    text = f"Linux {release} on {machine}"
    if not recent:
        text += ": 5.8 or later is needed"
    elif not known:
        text += ": x86_64 (or aarch64, untested) is needed"
    elif machine == _UNTESTED:
        text += ": the programs compile for it, but have not been tested"
    return Need("kernel", recent and known, text)


def _btf() -> tuple[Need, Btf | None]:
    try:
        btf = Btf.of_kernel()
    except PlatformError as error:
        return Need("BTF", False, str(error)), None
    return Need("BTF", True, f"{VMLINUX}, {VMLINUX.stat().st_size >> 10} KiB"), btf


def _bcc() -> Need:
    try:
        spec = importlib.util.find_spec("bcc")
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        return Need(
            "bcc", False,
            "missing: install python3-bpfcc (apt), python3-bcc (dnf, zypper) or python-bcc (pacman); the package named "
            "bcc on the Python index is another one",
        )  # fmt: skip
    directory = Path(spec.origin).parent
    if not (directory / "libbcc.py").is_file():
        return Need("bcc", False, f"{directory} is not the BPF Compiler Collection: install python3-bpfcc")
    try:
        version = re.search(r"__version__\s*=\s*['\"]([^'\"]+)", (directory / "version.py").read_text("utf-8"))
    except (OSError, UnicodeDecodeError):
        version = None
    return Need("bcc", True, f"{version[1] if version else 'of unknown version'}, in {directory}")


def _privilege(mask: int) -> Need:
    if os.geteuid() == 0 and may_trace(mask):
        return Need("privileges", True, "root")
    missing = [name for name in ("CAP_BPF", "CAP_PERFMON") if not mask >> CAPABILITIES[name] & 1]
    if may_trace(mask):
        return Need("privileges", True, "CAP_SYS_ADMIN" if missing else "CAP_BPF and CAP_PERFMON")
    return Need("privileges", False, f"no {' and no '.join(missing)}: run it with sudo")


def _socket_hook(btf: Btf | None) -> Need:
    if btf is None:
        return Need("socket hook", None, "cannot be told without BTF")
    if btf.has_tracepoint("sock_send_length"):
        text = "sock_send_length and sock_recv_length: processes that are not traced pay nothing measurable"
        return Need("socket hook", True, text)
    return Need("socket hook", True, "sys_exit: every system call of the host costs about 140 ns more while tracing")


def _uprobes() -> Need:
    if not Path(uprobes.UPROBES, "type").is_file():
        text = "no uprobes (CONFIG_UPROBE_EVENTS): TLS cannot be read, plaintext can"
        return Need("TLS hook", False, text, vital=False)
    if not _at_least(_OLDEST_TLS):
        return Need("TLS hook", False, "Linux 5.15 or later is needed: TLS cannot be read, plaintext can", vital=False)
    many = has_multi(platform.release())
    return Need("TLS hook", True, f"uprobes, placed {'many' if many else 'one'} at a time", vital=False)


def needs() -> list[Need]:
    """Look at everything that tracing needs."""
    btf_need, btf = _btf()
    return [_kernel(), btf_need, _bcc(), _privilege(effective_capabilities()), _socket_hook(btf), _uprobes()]
