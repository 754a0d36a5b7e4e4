"""What tracing needs of the machine: of this one, and of others as they would look."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from apitrace.errors import PlatformError
from apitrace.probes import host, uprobes
from apitrace.probes.btf import Btf
from apitrace.probes.host import Need, may_look_into_others, may_trace, needs

SYS_PTRACE, SYS_ADMIN, PERFMON, BPF = (1 << number for number in (19, 21, 38, 39))


def need(name: str) -> Need:
    return {one.name: one for one in needs()}[name]


@pytest.mark.parametrize(
    ("mask", "enough"),
    [(0, False), (SYS_ADMIN, True), (BPF, False), (PERFMON, False), (BPF | PERFMON, True), (SYS_PTRACE, False)],
)
def test_tracing_needs_cap_sys_admin_or_both_of_the_newer_ones(mask: int, enough: bool) -> None:
    assert may_trace(mask) is enough


def test_others_processes_are_open_to_cap_sys_ptrace() -> None:
    assert may_look_into_others(SYS_PTRACE | BPF)
    assert not may_look_into_others(BPF)


def test_capabilities_are_read_as_the_kernel_spells_them(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t000001ffffffffff\n")
    assert host.effective_capabilities(tmp_path / "status") == (1 << 41) - 1


def test_every_need_is_looked_at_once() -> None:
    assert [one.name for one in needs()] == ["kernel", "BTF", "bcc", "privileges", "socket hook", "TLS hook"]


@pytest.mark.parametrize(
    ("release", "machine", "met"),
    [
        ("6.18.44", "x86_64", True), ("5.8.0-63-generic", "x86_64", True), ("5.7.19", "x86_64", False),
        ("4.18.0-553.el8", "x86_64", False), ("6.1.0", "aarch64", True), ("6.1.0", "riscv64", False),
        ("unknown", "x86_64", False),
    ],
)  # fmt: skip
def test_the_kernel_must_be_new_enough_and_of_a_known_machine(
    monkeypatch: pytest.MonkeyPatch, release: str, machine: str, met: bool
) -> None:
    monkeypatch.setattr(platform, "release", lambda: release)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    found = need("kernel")
    assert found.met is met
    assert f"Linux {release} on {machine}" in found.text


def test_without_btf_the_socket_hook_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Btf:
        message = "no kernel type information"
        raise PlatformError(message)

    monkeypatch.setattr(Btf, "of_kernel", missing)
    assert need("BTF") == Need("BTF", False, "no kernel type information")
    assert need("socket hook").met is None


def test_an_older_kernels_socket_hook_says_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Btf, "has_tracepoint", lambda *_: False)
    found = need("socket hook")
    assert found.met
    assert "140 ns" in found.text


def test_without_uprobes_tls_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(uprobes, "UPROBES", tmp_path)
    assert need("TLS hook")[1::2] == (False, False)


def test_tls_needs_a_newer_kernel_than_plaintext(monkeypatch: pytest.MonkeyPatch) -> None:
    for release, met in (("5.14.21", False), ("5.15.0", True), ("6.9.1", True), ("6.18.44", True)):
        monkeypatch.setattr(platform, "release", lambda release=release: release)
        assert (need("kernel").met, need("TLS hook").met, need("TLS hook").vital) == (True, met, False)


class Spec:
    def __init__(self, origin: Path) -> None:
        self.origin = str(origin)


def test_bcc_is_told_from_the_package_of_the_same_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host.importlib.util, "find_spec", lambda _: Spec(tmp_path / "__init__.py"))
    assert need("bcc").met is False
    assert "is not the BPF Compiler Collection" in need("bcc").text
    (tmp_path / "libbcc.py").touch()
    assert need("bcc") == Need("bcc", True, f"of unknown version, in {tmp_path}")
    (tmp_path / "version.py").write_text("__version__ = '0.26.0'\n")
    assert need("bcc") == Need("bcc", True, f"0.26.0, in {tmp_path}")
    monkeypatch.setattr(host.importlib.util, "find_spec", lambda _: None)
    assert need("bcc").met is False
    assert "python3-bpfcc" in need("bcc").text


@pytest.mark.parametrize(
    ("uid", "mask", "met", "text"),
    [
        (0, -1, True, "root"),
        (1000, BPF | PERFMON, True, "CAP_BPF and CAP_PERFMON"),
        (1000, SYS_ADMIN, True, "CAP_SYS_ADMIN"),
        (1000, BPF, False, "no CAP_PERFMON: run it with sudo"),
        (0, 0, False, "no CAP_BPF and no CAP_PERFMON: run it with sudo"),  # root in a container
    ],
)
def test_privileges_are_named(monkeypatch: pytest.MonkeyPatch, uid: int, mask: int, met: bool, text: str) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(host, "effective_capabilities", lambda: mask)
    assert need("privileges") == Need("privileges", met, text)
