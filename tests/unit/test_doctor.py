"""--doctor: what would be placed in this machine's libraries, what is said of what was, and statuses of exit."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from apitrace import cli, doctor
from apitrace.cli import run
from apitrace.doctor import PointStatus, ProbeStatus, Process, can_trace, host_lines, planned, process_lines
from apitrace.exchange import Container
from apitrace.probes import host
from apitrace.probes.host import Need
from apitrace.probes.libraries import GNUTLS, OPENSSL, OTHER, RUNTIME, SHARED, Libraries, MappedFile, Stack
from apitrace.probes.placement import Placement
from tests.unit.probes.test_libraries import running

SYSTEM = Path("/usr/lib/x86_64-linux-gnu")
CHEAP = Placement(16, 16, 0, "push r13", True, False, 0, (), "")
SLOW = Placement(32, 32, 0, "sub rsp, 0x18", False, False, 0, (), "the kernel emulates none of its first instructions")


def mapped(path: Path) -> MappedFile:
    status = path.stat()
    return MappedFile(str(path), str(path), status.st_dev, status.st_ino)


LIBSSL = Stack(
    OPENSSL, "OpenSSL", "3.0.15", mapped(SYSTEM / "libssl.so.3"), "ab12", SHARED, mapped(SYSTEM / "libcrypto.so.3"), ""
)
NOWHERE = MappedFile("/gone/libssl.so.3", "/nonexistent", 1, 2)
JSSE = Stack(OTHER, "JSSE", "17.0.9", NOWHERE, None, RUNTIME, None, "Java's own TLS is compiled while it runs")


GO_SERVER = """
package main
import ("bufio"; "fmt"; "net/http"; "os")
func main() {
    go http.ListenAndServeTLS("127.0.0.1:0", "", "", nil)
    fmt.Println("ready")
    bufio.NewReader(os.Stdin).ReadString(10)
}
"""


def functions(status: ProbeStatus) -> list[str]:
    return list(dict.fromkeys(point.function for point in status.points))


# What would be placed


def test_openssl_is_probed_in_its_own_functions_and_libcryptos() -> None:
    status = planned(LIBSSL)
    assert status.reason == ""
    assert [name.partition(" ")[0] for name in functions(status)] == [
        "SSL_read", "SSL_write", "SSL_do_handshake", "SSL_free", "BIO_write",
    ]  # fmt: skip
    assert all(point.placed is None and point.hits is None for point in status.points)
    assert [point.function for point in status.points if point.passing] == ["BIO_write"]


def test_gnutls_is_probed_too() -> None:
    status = planned(Stack(GNUTLS, "GnuTLS", None, mapped(SYSTEM / "libgnutls.so.30"), None, SHARED, None, ""))
    assert status.reason == ""
    assert any("gnutls_record_send" in name for name in functions(status))


def test_go_is_probed_inside_its_functions(tmp_path: Path) -> None:
    go = shutil.which("go")
    assert go, "go is not installed"
    (tmp_path / "main.go").write_text(GO_SERVER)
    subprocess.run([go, "build", "-o", tmp_path / "server", tmp_path / "main.go"], check=True)
    with running(str(tmp_path / "server")) as pid:
        (stack,) = Libraries().stacks(pid)
        status = planned(stack)
        assert functions(status) == ["crypto/tls.(*Conn).Read", "crypto/tls.(*Conn).Write"]
        assert {point.at for point in status.points} == {"call"}
        text = "\n".join(process_lines([Process(pid, "server", None, (status,))]))
        assert "descriptor that the connection object leads to" in text


def test_what_cannot_be_read_says_why_and_never_raises() -> None:
    assert planned(JSSE) == ProbeStatus(JSSE, JSSE.reason, ())
    gone = planned(LIBSSL._replace(where=NOWHERE))
    assert gone.points == ()
    assert gone.reason.startswith("the file cannot be read")


# What is said


def lines_of(*processes: Process) -> list[str]:
    return list(process_lines(processes))


def point(**fields: object) -> PointStatus:
    return PointStatus("SSL_read", "entry", CHEAP, True, "", 12)._replace(**fields)


def test_there_is_one_row_for_each_process_and_one_paragraph_for_each_file() -> None:
    status = ProbeStatus(JSSE, JSSE.reason, ())
    web = Container("3f" * 32, name="web")
    said = lines_of(
        Process(7, "java", web, (status,)), Process(8, "java", None, (status,)), Process(9, "sleep", None, ())
    )
    assert said[:5] == [
        "PROCESS   CONTAINER  TLS                 READABLE  PROBES  HITS",
        "java[7]   web        JSSE (Java 17.0.9)  no        -       -",
        "java[8]   -          JSSE (Java 17.0.9)  no        -       -",
        "sleep[9]  -          none found          -         -       -",
        "",
    ]
    assert said[5:] == [
        "JSSE (Java 17.0.9)",
        "    /gone/libssl.so.3",
        "    part of the runtime, build id none",
        "    not readable: Java's own TLS is compiled while it runs; plaintext is still",
        "    shown",
    ]


def test_the_cost_of_each_probe_is_told_and_why() -> None:
    slow = point(function="SSL_write", place=SLOW, hits=3)
    said = lines_of(Process(7, "nginx", None, (ProbeStatus(LIBSSL, "", (point(), slow)),)))
    assert said[1].split()[-6:] == ["2", "of", "2,", "1", "slow", "15"]
    text = " ".join(" ".join(said).split())
    assert "SSL_read entry at +0x0 (push r13): cheap, about 0.45 us; placed; 12 hits" in text
    assert (
        "SSL_write entry at +0x0 (sub rsp, 0x18): single-stepped, about 16 us: the kernel emulates none of its first "
        "instructions; placed; 3 hits"
    ) in text


@pytest.mark.parametrize(
    ("points", "readable", "probes"),
    [
        ((point(placed=True), point(placed=True)), "yes", "2 of 2"),
        ((point(placed=True), point(placed=False, why="no such device", hits=None)), "partly", "1 of 2"),
        ((point(placed=False, why="no such device", hits=None),), "no", "0 of 1"),
        ((point(placed=None, hits=None),), "yes", "1, not placed"),
        ((), "no", "-"),
    ],
)
def test_whether_it_can_be_read_follows_from_what_could_be_placed(
    points: tuple[PointStatus, ...], readable: str, probes: str
) -> None:
    said = lines_of(Process(7, "nginx", None, (ProbeStatus(LIBSSL, "", points),)))
    row = [part.strip() for part in said[1].split("  ") if part.strip()]
    assert row[3:5] == [readable, probes]


def test_a_probe_that_failed_says_why() -> None:
    failed = point(placed=False, why="no such device", hits=None)
    said = " ".join(" ".join(lines_of(Process(7, "nginx", None, (ProbeStatus(LIBSSL, "", (failed,)),)))).split())
    assert "not placed: no such device" in said


def test_probes_in_several_processes_are_told_together() -> None:
    processes = [Process(pid, "nginx", None, (ProbeStatus(LIBSSL, "", (point(),)),)) for pid in (7, 8, 9)]
    said = "\n".join(process_lines(processes))
    assert said.count("SSL_read\n") == 1
    assert "placed in 3 of 3 processes" in " ".join(said.split())


def test_how_sockets_are_found_names_the_client_random() -> None:
    said = " ".join(" ".join(lines_of(Process(7, "nginx", None, (planned(LIBSSL),)))).split())
    assert "found in its SSL objects (offset 352)" in said


def test_a_process_that_may_not_be_looked_into_says_so() -> None:
    said = " ".join(lines_of(Process(7, "nginx", None, None)))
    assert "? (may not be read)" in said
    assert "cannot be told without root" in said


def test_names_reach_the_terminal_escaped_and_lines_stay_narrow() -> None:
    evil = "\x1b[31m"
    stack = LIBSSL._replace(version=evil, where=NOWHERE._replace(path=f"/{evil}/{'x' * 40}"))
    status = ProbeStatus(stack, "", (point(function=f"{evil} {'SSL ' * 40}"),))
    said = lines_of(Process(7, evil, Container("a" * 64, name=evil), (status,)))
    assert all(line.isprintable() for line in said)
    assert max(map(len, said)) < 80


def test_the_machines_needs_are_marked() -> None:
    needs = [Need("BTF", True, "there"), Need("bcc", False, "missing: " + "word " * 30), Need("hook", None, "unknown")]
    said = list(host_lines(needs))
    assert said[1] == "  ok      BTF           there"
    assert said[2].startswith("  MISSING bcc           missing: word")
    assert said[-1] == "  ?       hook          unknown"
    assert max(map(len, said)) < 80
    assert not can_trace(needs)
    assert can_trace([needs[0], needs[2], Need("TLS hook", False, "missing", vital=False)])


# The command


def test_without_targets_it_is_about_the_machine(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host, "needs", lambda: [Need("BTF", True, "there")])
    assert run(["--doctor"]) == 0
    assert capfd.readouterr().out == "this machine\n  ok      BTF           there\n"


def test_what_is_missing_is_status_3_and_what_can_be_told_is_told_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host, "needs", lambda: [Need("privileges", False, "run it with sudo")])
    with running("/usr/bin/python3", "-c", "import ssl, sys; print('ready', flush=True); sys.stdin.read()") as pid:
        assert run(["--doctor", "-p", str(pid)]) == 3
        out, _ = capfd.readouterr()
        assert f"python3[{pid}]" in out
        assert "7, not placed" in out
        assert "MISSING privileges" in out


def test_a_target_that_is_not_there_is_status_1(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["--doctor", "-p", str(1 << 22)]) == 1
    assert capfd.readouterr().err.count("\n") == 1


def test_a_name_that_nobody_has_yet_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["--doctor", "--comm", "no-such-name"]) in (0, 3)
    assert "no process of it runs now" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--list", "--doctor"], "--list does not go with --doctor"),
        (["--list", "--demo"], "--list does not go with --demo"),
        (["--doctor", "--port", "80"], "--doctor does not go with --port"),
        (["--doctor", "-j"], "--doctor does not go with --output json"),
        (["--list", "--host", "::1"], "--list does not go with --host"),
        (["--list", "-c", "1"], "--list does not go with --count"),
        (["--doctor", "-w", "x.apitrace"], "--doctor does not go with --write"),
        (["--list", "-r", "x.apitrace"], "--list does not go with --read"),
    ],
)
def test_what_does_not_go_together_is_bad_usage(
    arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    assert said in capfd.readouterr().err


def test_a_command_to_run_is_no_target_of_either() -> None:
    for option in ("--list", "--doctor"):
        with pytest.raises(cli.UsageError, match="does not go with -- COMMAND"):
            cli.parse([option, "--", "true"])


def test_programs_that_do_not_load_are_a_need_that_is_not_met(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> None:
        message = "the kernel refuses the programs"
        raise cli.PlatformError(message)

    monkeypatch.setattr(host, "needs", lambda: [Need("privileges", True, "root")])
    monkeypatch.setattr(cli, "_watch", fails)
    with running("/usr/bin/python3", "-c", "import sys; print('ready', flush=True); sys.stdin.read()") as pid:
        assert run(["--doctor", "-p", str(pid)]) == 3
    out, _ = capfd.readouterr()
    assert "MISSING programs      the kernel refuses the programs" in out
    assert doctor.can_trace([])
