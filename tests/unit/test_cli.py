"""Options and their errors: one line each, with the exit status that the man page promises."""

from __future__ import annotations

import importlib.util
import struct
from typing import TYPE_CHECKING, cast

import pytest

from apitrace import __version__, cli
from apitrace.cli import _keep, parse, run
from apitrace.errors import UsageError
from apitrace.options import ALL, NO_LIVE, STREAMING, CallOptions, Options
from apitrace.pipeline import Capture, Limits
from apitrace.probes import events
from apitrace.stats import Stats
from tests.unit.test_connection import GET, OK, Wire
from tests.unit.test_connection import Capture as Stages
from tests.unit.test_connection_tls import Session, handshake, placed
from tests.unit.test_pipeline import Fake, Keeps, capture, chunk
from tests.unit.test_pipeline import head as raw_head

if TYPE_CHECKING:
    from pathlib import Path

    from apitrace.exchange import Exchange
    from apitrace.sinks.sink import Sink
    from apitrace.sinks.table import Table


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


def tls_exchange(*, tied: bool) -> Exchange:
    """Return an exchange of a TLS session whose socket is known or not."""
    wire, stages = Wire(), Stages()
    session = Session(wire, point=5)  # Go's, which nothing waits for
    stages.feed(placed(), wire.socket(probed=True), *handshake(wire))
    [exchange] = stages.feed(session.seen(tied=tied), session.read(GET), session.write(OK))
    return exchange


def plain_exchange(*, known: bool) -> Exchange:
    wire, stages = Wire(), Stages()
    [exchange] = stages.feed(*[wire.socket()] * known, wire.receive(GET), wire.send(OK))
    return exchange


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (["-a", "--port", "80"], [True, False, True, True]),
        (["-a", "--host", "10.0.0.1"], [True, False, True, True]),
        (["-a", "--port", "80", "-Q", "in"], [True, False, True, True]),
        (["-a", "--port", "80", "-Q", "out"], [False] * 4),
        (["-a", "-Q", "in"], [True] * 4),
    ],
)
def test_port_and_host_leave_out_tls_of_unknown_address_and_nothing_else(
    arguments: list[str], kept: list[bool]
) -> None:
    """What a socket moved has passed the kernel's filter, also if the event with its address was lost."""
    keep = _keep(options(*arguments))
    assert keep is not None
    exchanges = [tls_exchange(tied=tied) for tied in (True, False)]
    exchanges += [plain_exchange(known=known) for known in (True, False)]
    assert [keep(exchange) for exchange in exchanges] == kept


def test_without_port_host_and_direction_everything_is_kept() -> None:
    assert _keep(options("-a")) is None


def test_tls_of_unknown_address_is_counted_as_filtered() -> None:
    session = raw_head(events.SESSION, 0, 5)[:24] + struct.pack(
        "=QQQIIIIII16s16s", 1, 0x7F00, 0, 0, 0, 5, 0, 0, 0, b"", b"srv"
    )
    found = events.encode_probes(events.ProbesPlaced(1, 7, ((5, "crypto/tls go1.19.8"),), (), probed=True))
    raw = [found, session, chunk(10, events.FLAG_PLAINTEXT, 0, GET)]
    raw.append(chunk(15, events.FLAG_PLAINTEXT | events.FLAG_EGRESS, 0, OK))
    for arguments, paths, filtered in ((["-a"], ["/a"], 0), (["-a", "--port", "80"], [], 1)):
        source, sink, stats = Fake([list(raw), [raw_head(events.EXIT, 0, 90)]]), Keeps(), Stats()
        running: Capture = capture(
            source, sink, stats=stats, keep=_keep(options(*arguments)), limits=Limits(ended=lambda: True)
        )
        running.run()
        assert (sink.paths, stats.filtered, stats.captured) == (paths, filtered, 1)


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


@pytest.mark.parametrize("content", [None, "", "message {"])
def test_a_bad_proto_file_is_one_line_and_status_2(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.proto"
    if content is not None:
        path.write_text(content)
    assert run(["-a", "--proto", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"apitrace: --proto {path}: ")
    assert err.count("\n") == 1


def test_without_the_protobuf_library_proto_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert run(["-a", "--proto", "x.pb"]) == 2
    assert "pip install" in capsys.readouterr().err


def test_messages_are_taken_apart_only_for_what_shows_them() -> None:
    schema = None
    table = cast("Table", object())
    lines = cast("Sink", object())
    assert cli._calls(options("-a"), schema, [lines], None) == CallOptions(NO_LIVE, True)
    assert cli._calls(options("-a", "--messages"), schema, [lines], None) == CallOptions(ALL, True)
    assert cli._calls(options("-a"), schema, [table], table) == CallOptions(STREAMING, False)
    assert cli._calls(options("-a", "-vv"), schema, [table], table) == CallOptions(STREAMING, True)
    assert cli._calls(options("-a", "-v"), schema, [lines, table], table) == CallOptions(STREAMING, True)
    assert cli._calls(options("-a", "--messages"), schema, [], None) == CallOptions(NO_LIVE, False)
