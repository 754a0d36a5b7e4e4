"""Options and their errors: one line each, with the exit status that the man page promises."""

from __future__ import annotations

import pytest

from apitrace import __version__
from apitrace.cli import parse, run
from apitrace.errors import UsageError
from apitrace.options import Options


def options(*arguments: str) -> Options:
    parsed = parse(arguments)
    assert isinstance(parsed, Options)
    return parsed


def test_pids_ports_and_hosts_come_as_comma_lists_and_repeated() -> None:
    parsed = options("-p", "1,2", "--pid", "3", "--port", "80,443", "--host", "127.0.0.1,::1")
    assert (parsed.pids, parsed.ports, parsed.hosts) == ((1, 2, 3), (80, 443), ("127.0.0.1", "::1"))


def test_localhost_is_both_loopback_addresses() -> None:
    assert options("-a", "--host", "localhost").hosts == ("127.0.0.1", "::1")


def test_everything_behind_the_dashes_is_the_command() -> None:
    parsed = options("-v", "--", "curl", "-v", "--", "x")
    assert (parsed.command, parsed.verbosity) == (("curl", "-v", "--", "x"), 1)


def test_defaults() -> None:
    parsed = options("-p", "1")
    assert parsed == Options(pids=(1,))


@pytest.mark.parametrize(("text", "size"), [("0", 0), ("100", 100), ("64k", 65536), ("1M", 1 << 20), ("2KiB", 2048)])
def test_sizes_have_units(text: str, size: int) -> None:
    assert options("-a", "-s", text).snaplen == size


def test_tcpdumps_letters_are_counted() -> None:
    parsed = options("-a", "-vv", "-tttt", "-Q", "in")
    assert (parsed.verbosity, parsed.timestamps, parsed.direction) == (2, 4, "in")


def test_follow_can_be_switched_off() -> None:
    assert options("-a").follow
    assert options("-a", "-f").follow
    assert not options("-a", "--no-follow").follow


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to trace"),
        (["-p", "x"], "'x' is not a process id"),
        (["-p", "0"], "'0' is not a process id"),
        (["-p", "-1"], "'-1' is not a process id"),
        (["-a", "--port", "65536"], "'65536' is not a port"),
        (["-a", "--port", "http"], "'http' is not a port"),
        (["-a", "--host", "example.com"], "is not an IP address"),
        (["-a", "-s", "big"], "'big' is not a number of bytes"),
        (["-a", "-s", "2g"], "'2g' is not a number of bytes"),
        (["-a", "-c", "0"], "0 is not in the range"),
        (["-a", "--duration", "0"], "0.0 is not in the range"),
        (["-a", "-Q", "up"], "'up' is not one of"),
        (["-a", "--output", "xml"], "'xml' is not one of"),
        (["-a", "-j", "-o", "table"], "exclude each other"),
        (["-a", "-w", "x.pcap"], "the suffix says the format"),
        (["-a", "--print"], "--print goes with --write"),
        (["-r", "x.apitrace", "-p", "1"], "it goes with no target"),
        (["-r", "x.apitrace", "--port", "80"], "it goes with no target"),
        (["--demo", "-p", "1"], "--demo brings its own target"),
        (["-a", "--no-such-option"], "No such option"),
        (["-a", "method", "==", "x"], "unexpected argument 'method'"),
        (["-a", "--"], "no command behind --"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError):
        parse(arguments)
    assert run(arguments) == (125 if "--" in arguments else 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("apitrace: ")
    assert err.count("\n") == 1
    assert said in err


def test_a_recording_that_is_not_there_is_one_line(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-r", f"{tmp_path}/none.apitrace"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"apitrace {__version__}\n"
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "Usage: apitrace [OPTIONS] [-- COMMAND [ARG]...]" in shown
    assert "--hook" not in shown
