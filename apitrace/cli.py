"""The command line: options to Options, errors to exit statuses, and the order in which a capture is put together.

Exit statuses: 0 done, 1 target not found, 2 usage, 3 privilege or kernel feature missing, 4 output failed. With
`-- COMMAND` the command's own; our failures are then 125, a command that cannot be executed 126, not found 127.
Everything for the user to read but the exchanges goes to stderr.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TextIO, cast

import click

from apitrace import __version__, doctor, listing
from apitrace.errors import ApitraceError, OutputError, PlatformError, UsageError
from apitrace.exchange import Exchange
from apitrace.files.recording import Recording
from apitrace.files.replay import Replay
from apitrace.options import ALL, NO_LIVE, STREAMING, CallOptions, MessageSchema, Options
from apitrace.pipeline import Capture, Limits
from apitrace.probes import host, procfs
from apitrace.probes.events import EventError
from apitrace.probes.libraries import Libraries
from apitrace.probes.sockets import LiveSource, Narrowing
from apitrace.redact import Redactor
from apitrace.sinks.jsonl import JsonLines
from apitrace.sinks.output import give_to_caller
from apitrace.sinks.recording import Recorder, new_header
from apitrace.sinks.sink import Sink
from apitrace.sinks.table import Table
from apitrace.stats import Stats
from apitrace.targets.command import Command, CommandError
from apitrace.targets.containers import Containers
from apitrace.targets.resolve import Resolver
from apitrace.targets.target import TargetSet

_COMMAND_FAILED = 125
"""Our own failure when a command was to be run, as of env(1) and docker run."""

_BODIES = 2
"""The verbosity from which on the table shows bodies."""


def _split_commas(_context: click.Context, _parameter: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
    return tuple(part for value in values for part in value.split(",") if part)


def _numbers(low: int, high: int, what: str) -> Callable[[Any, Any, Sequence[str]], tuple[int, ...]]:
    def convert(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> tuple[int, ...]:
        numbers = []
        for part in _split_commas(context, parameter, values):
            if not part.isascii() or not part.isdigit() or not low <= int(part) <= high:
                message = f"{part!r} is not a {what} ({low} to {high})"
                raise click.BadParameter(message)
            numbers.append(int(part))
        return tuple(numbers)

    return convert


def _addresses(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
    addresses: list[str] = []
    for part in _split_commas(context, parameter, values):
        if part == "localhost":  # the one name that needs no DNS query: RFC 6761, section 6.3
            addresses += ["127.0.0.1", "::1"]
            continue
        try:
            addresses.append(str(ipaddress.ip_address(part)))
        except ValueError as error:
            message = f"{part!r} is not an IP address (names are not looked up: apitrace makes no DNS queries)"
            raise click.BadParameter(message) from error
    return tuple(addresses)


_SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20}


def _size(_context: click.Context, _parameter: click.Parameter, value: str) -> int:
    text = value.lower().removesuffix("ib").removesuffix("b")
    unit = text[-1:] if text[-1:] in ("k", "m") else ""
    number = text.removesuffix(unit)
    if not number.isascii() or not number.isdigit() or int(number) * _SIZES[unit] > 1 << 30:
        message = f"{value!r} is not a number of bytes (0 to 1GiB; 64k and 1M are understood)"
        raise click.BadParameter(message)
    return int(number) * _SIZES[unit]


class _Command(click.Command):
    """click's command, but with usage errors on one line."""

    def format_usage(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(context.command_path, "[OPTIONS] [-- COMMAND [ARG]...]")


@click.command(
    cls=_Command,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit status: 0 done, 1 target not found, 2 usage, 3 privilege or kernel feature missing, 4 output failed. "
    "With -- COMMAND: the command's own; 125 if apitrace failed, 126 if the command cannot be run, 127 if it is not "
    "found.",
)
@click.argument("expression", nargs=-1, metavar="")
@click.option("-p", "--pid", "pids", multiple=True, metavar="PID[,PID]", callback=_numbers(1, 1 << 22, "process id"),
              help="Trace these processes (and their children).")
@click.option("--comm", "comms", multiple=True, metavar="NAME[,NAME]", callback=_split_commas,
              help="Trace processes of this name, present and future.")
@click.option("--container", "containers", multiple=True, metavar="NAME|ID", callback=_split_commas,
              help="Trace a container of Docker, Podman, containerd or CRI-O, by name, ID or start of the ID.")
@click.option("--pod", "pods", multiple=True, metavar="[NS/]NAME", callback=_split_commas,
              help="Trace all containers of a Kubernetes pod.")
@click.option("--cgroup", "cgroups", multiple=True, metavar="PATH", help="Trace a cgroup and those below it, v2 or v1.")
@click.option("-a", "--all", "everything", is_flag=True, help="Trace every process of the host.")
@click.option("-f/ ", "--follow/--no-follow", "follow", default=True, help="Trace children too (the default).")
@click.option("--port", "ports", multiple=True, metavar="N[,N]", callback=_numbers(1, 65535, "port"),
              help="Only connections with this port at either end.")
@click.option("--host", "hosts", multiple=True, metavar="ADDR[,ADDR]", callback=_addresses,
              help="Only connections with this IP address at either end.")
@click.option("-r", "--read", metavar="FILE", help="Read a recording instead of tracing; needs no privilege.")
@click.option("-c", "--count", type=click.IntRange(min=1), metavar="N", help="Stop after N exchanges.")
@click.option("--duration", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
              help="Stop after this time.")
@click.option("-s", "--snaplen", default="64k", show_default=True, metavar="BYTES", callback=_size,
              help="Keep so many bytes of each body.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]),
              help="How to show exchanges [default: table on a terminal, else json].")
@click.option("-j", "--json", "as_json", is_flag=True, help="Short for --output json: one JSON object a line.")
@click.option("-w", "--write", metavar="FILE",
              help="Write to FILE, a recording (.apitrace) or JSON lines (.jsonl); show nothing without --print.")
@click.option("--print", "print_too", is_flag=True, help="With --write: show exchanges as well.")
@click.option("-v", "verbosity", count=True, help="Table: show headers; -vv: bodies too.")
@click.option("-q", "--quiet", is_flag=True, help="No banner, status line or summary.")
@click.option("-t", "timestamps", count=True,
              help="Table, as in tcpdump: -t no time, -tt Unix time, -ttt since the row before, -tttt with the date, "
              "-ttttt since the first row.")
@click.option("-Q", "direction", type=click.Choice(["in", "out"]),
              help="Only calls that the target answers (in) or makes (out).")
@click.option("--color", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True,
              help="Colour the table.")
@click.option("--show-secrets", is_flag=True,
              help="Do not mask Authorization, cookies, API keys and passwords in URLs.")
@click.option("--raw-headers", is_flag=True,
              help="JSON: add header_list, with case, order and repeats as on the wire.")
@click.option("--messages", is_flag=True,
              help="Show each message of a gRPC call as it passes, not only with the call when that has ended.")
@click.option("--proto", multiple=True, metavar="FILE",
              help="Name what is in gRPC messages, from a .proto file or a descriptor set.")
@click.option("--ready-file", metavar="PATH", help="Create PATH once the probes are in place.")
@click.option("--demo", is_flag=True, help="Trace a built-in workload.")
@click.option("--list", "listing", is_flag=True,
              help="List the processes that could be traced: listening ports, container, TLS found.")
@click.option("--doctor", is_flag=True,
              help="Say what can be read of the targets' TLS, and why not, and what this machine lacks.")
@click.option("--hook", type=click.Choice(["sock_length", "sys_exit"]), hidden=True)
@click.version_option(__version__, message="apitrace %(version)s")
def _parse(*, expression: tuple[str, ...], as_json: bool, **values: Any) -> Options:
    r"""Show the HTTP exchanges of a process, container, cgroup or command, live: tcpdump for APIs.

    \b
    sudo apitrace --pid 4121
    sudo apitrace --container web
    sudo apitrace -- curl -s http://127.0.0.1:8080/
    sudo apitrace -p 4121 -j | jq -c 'select(.response.status_code >= 500)'
    """
    if expression:
        message = f"unexpected argument {expression[0]!r}: a command to trace goes behind --"
        raise click.UsageError(message)
    if as_json:
        if values["output"] == "table":
            message = "-j and --output table exclude each other"
            raise click.UsageError(message)
        values["output"] = "json"
    fields: dict[str, Any] = values
    return Options(**fields)


def parse(arguments: Sequence[str]) -> Options | int:
    """Return the options, or the exit status if the arguments asked for help or the version. Raises UsageError."""
    arguments = list(arguments)
    command: tuple[str, ...] = ()
    if "--" in arguments:
        at = arguments.index("--")
        arguments, command = arguments[:at], tuple(arguments[at + 1 :])
        if not command:
            message = "no command behind --"
            raise UsageError(message)
    try:
        options = _parse.main(arguments, prog_name="apitrace", standalone_mode=False)
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.ClickException as error:
        message = f"{error.format_message()} (see apitrace --help)"
        raise UsageError(" ".join(message.split())) from error
    if not isinstance(options, Options):
        return int(options or 0)
    return _check(options, command)


def _check(options: Options, command: tuple[str, ...]) -> Options:
    """Return the options with the command. Raises UsageError for combinations that make no sense."""
    options = replace(options, command=command)
    problem = None
    if options.read is not None and (options.has_target or options.demo or options.ports or options.hosts):
        problem = "--read takes its exchanges from a file: it goes with no target, --port or --host"
    elif options.demo and options.has_target:
        problem = "--demo brings its own target"
    elif options.listing or options.doctor:
        problem = _check_report(options)
    elif options.read is None and not options.demo and not options.has_target:
        problem = (
            "nothing to trace: name a --pid, --comm, --container, --pod, --cgroup, --all or -- COMMAND (or --read FILE)"
        )
    elif options.write is not None and Path(options.write).suffix not in (".apitrace", ".jsonl"):
        problem = f"--write {options.write}: the suffix says the format, and must be .apitrace or .jsonl"
    elif options.print_too and options.write is None:
        problem = "--print goes with --write"
    elif options.write is not None and options.read is not None and _same_file(options.write, options.read):
        problem = "--read and --write name the same file"
    if problem:
        raise UsageError(problem)
    return options


def _check_report(options: Options) -> str | None:
    """Return what does not go with --list or --doctor; None: nothing."""
    name = "--list" if options.listing else "--doctor"
    without = {
        "--doctor": options.listing and options.doctor,
        "-- COMMAND": options.command,
        "--demo": options.demo,
        "--host": options.hosts,
        "--port": options.doctor and options.ports,
        "--read": options.read,
        "--write": options.write,
        "--output json": options.doctor and options.output == "json",
        "--duration": options.listing and options.duration,
        "--count": options.count,
    }
    return next((f"{name} does not go with {other}" for other, given in without.items() if given), None)


def _same_file(one: str, other: str) -> bool:
    try:
        return Path(one).samefile(other)
    except OSError:
        return False


def _say(text: str) -> None:
    """Print one line for the user on stderr."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"apitrace: {text}\n")
        sys.stderr.flush()


def _require_privilege() -> None:
    if not host.may_trace(host.effective_capabilities()):
        message = "tracing needs root, or CAP_BPF and CAP_PERFMON: run it with sudo"
        raise PlatformError(message)


def _clock_offset() -> int:
    """Return Unix time minus CLOCK_MONOTONIC, in ns: the best of some readings, since either clock may be read late."""
    best, offset = None, 0
    for _ in range(5):
        before = time.monotonic_ns()
        unix = time.time_ns()
        after = time.monotonic_ns()
        if best is None or after - before < best:
            best, offset = after - before, unix - (before + after) // 2
    return offset


def _terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:
        return False


def _outputs(options: Options, node_name: str) -> tuple[list[Sink], Table | None]:
    """Return the sinks for exchanges; the table too, if stdout shows one."""
    sinks: list[Sink] = []
    if options.write is not None and options.write.endswith(".jsonl"):
        try:
            stream = cast("BinaryIO", Path(options.write).open("wb"))  # noqa: SIM115 - the sink closes it
        except OSError as error:
            message = f"cannot write {options.write}: {error.strerror}"
            raise OutputError(message) from error
        give_to_caller(stream.fileno())
        sinks.append(_json_lines(stream, options, node_name))
    if options.write is not None and not options.print_too:
        return sinks, None
    kind = options.output or ("table" if _terminal(sys.stdout) else "json")
    if kind == "json":
        sinks.append(_json_lines(sys.stdout.buffer, options, node_name))
        return sinks, None
    color = options.color == "always" or (
        options.color == "auto" and _terminal(sys.stdout) and "NO_COLOR" not in os.environ
    )
    table = Table(
        sys.stdout,
        width=lambda: shutil.get_terminal_size().columns if _terminal(sys.stdout) else None,
        color=color,
        verbosity=options.verbosity,
        timestamps=options.timestamps,
        status_line=_terminal(sys.stdout) and not options.quiet,
    )
    sinks.append(table)
    return sinks, table


def _json_lines(stream: BinaryIO, options: Options, node_name: str) -> JsonLines:
    return JsonLines(stream, raw_headers=options.raw_headers, messages=options.messages, node_name=node_name)


def _schema(options: Options) -> MessageSchema | None:
    """Return what --proto names. Raises UsageError."""
    if not options.proto:
        return None
    from apitrace.files import proto  # noqa: PLC0415 - with what it imports, 20 ms that no other start needs

    return proto.load(options.proto)


def _calls(
    options: Options, schema: MessageSchema | None, sinks: Sequence[Sink], table: Table | None
) -> CallOptions:
    """Return what to make of gRPC calls for these sinks: no more than they show."""
    live = ALL if options.messages else STREAMING if table is not None else NO_LIVE
    data = any(sink is not table for sink in sinks) or options.verbosity >= _BODIES
    return CallOptions(live if sinks else NO_LIVE, data, schema)


def _keep(options: Options) -> Callable[[Exchange], bool] | None:
    conditions: list[Callable[[Exchange], bool]] = []
    if options.direction is not None:
        role = "server" if options.direction == "in" else "client"
        conditions.append(lambda exchange: exchange.process.role == role)
    if options.ports or options.hosts:
        # The kernel filters by socket. Of a TLS session whose socket is not known nobody can say that it passes.
        conditions.append(lambda exchange: exchange.tls is None or exchange.connection.address_source != "unknown")
    return (lambda exchange: all(condition(exchange) for condition in conditions)) if conditions else None


@contextlib.contextmanager
def _ready(path: str | None) -> Iterator[Callable[[], None]]:
    """Give a function that creates the ready file; the file goes away with the capture."""
    made = False

    def create() -> None:
        nonlocal made
        if path is None:
            return
        try:
            Path(path).touch()
        except OSError as error:
            message = f"cannot create the ready file {path}: {error.strerror}"
            raise OutputError(message) from error
        made = True

    try:
        yield create
    finally:
        if made and path is not None:
            with contextlib.suppress(OSError):
                Path(path).unlink()


def _summary(options: Options, stats: Stats) -> None:
    if not options.quiet:
        for line in stats.summary_lines():
            _say(line)


def _replay(options: Options) -> int:
    """-r: the same stages, with a recording in place of the kernel."""
    assert options.read is not None  # noqa: S101 - for the type checker: the caller has looked
    schema = _schema(options)
    recording = Recording(options.read)
    stats = Stats()
    sinks, table = _outputs(options, recording.header.node_name)
    capture = Capture(
        Replay(recording),
        sinks,
        stats=stats,
        clock_offset_ns=recording.header.clock_offset_ns,
        snaplen=options.snaplen,
        redactor=Redactor(show=options.show_secrets),
        calls=_calls(options, schema, sinks, table),
        keep=_keep(options),
        limits=Limits(count=options.count),
        say=_say,
    )
    with capture.signals():
        try:
            capture.run()
        except EventError as error:
            message = f"cannot read {options.read}: {error}; what came before is shown"
            raise UsageError(message) from error
    if recording.truncated:
        _say(f"{options.read} ends in the middle of an event: its writer was cut off")
    _summary(options, stats)
    return 0


def _resolve(resolver: Resolver, options: Options) -> TargetSet:
    return resolver.resolve(
        pids=options.pids,
        comms=options.comms,
        containers=options.containers,
        pods=options.pods,
        cgroups=options.cgroups,
        everything=options.everything,
        follow=options.follow,
    )


def _print(pieces: Iterable[bytes]) -> None:
    """Write to stdout, as the pieces come. A reader that has gone away is no error."""
    try:
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
    except OSError as error:
        message = f"cannot write to stdout: {error.strerror}"
        raise OutputError(message) from error


def _print_lines(lines: Iterable[str]) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    _print(f"{line}\n".encode(encoding, "backslashreplace") for line in lines)


def _chosen(options: Options, resolver: Resolver) -> tuple[TargetSet, list[int]]:
    """Return the targets, and the processes that they stand for now: all of the host's if none are named."""
    targets = _resolve(resolver, options) if options.has_target else TargetSet(everything=True)
    if targets.everything:
        return targets, [pid for pid in procfs.pids() if pid != os.getpid()]
    return targets, sorted({*resolver.named(targets), *resolver.members(targets)})


def _list(options: Options) -> int:
    """--list."""
    containers = Containers()
    _, pids = _chosen(options, Resolver(containers))
    rows = []

    def found() -> Iterator[listing.Row]:
        for row in listing.scan(pids, containers.describe, Libraries(), ports=options.ports):
            rows.append(row)
            yield row

    if options.output == "json":
        _print(map(listing.json_line, found()))
    else:
        width = shutil.get_terminal_size().columns if _terminal(sys.stdout) else None
        _print_lines(listing.table(list(found()), width))
    unread = listing.unread(rows)
    if unread and not options.quiet:
        root = "" if host.may_look_into_others(host.effective_capabilities()) else ": run it with sudo"
        _say(f"{unread} of {len(rows)} processes may not be looked into, and show ? for what is not known{root}")
    return 0


_WATCHED_S = 2.0
"""For how long --doctor counts hits if --duration does not say."""


def _doctor(options: Options) -> int:
    """--doctor."""
    needs = host.needs()
    processes: list[doctor.Process] = []
    if options.has_target:
        containers = Containers()
        resolver = Resolver(containers)
        targets, pids = _chosen(options, resolver)
        if not pids:
            _say(f"{targets.description}: no process of it runs now")
        found: dict[int, tuple[doctor.ProbeStatus, ...]] = {}
        if doctor.can_trace(needs) and not targets.everything and pids:
            try:
                found = _watch(options, targets, resolver, containers)
            except PlatformError as error:
                needs.append(host.Need("programs", False, str(error)))
        libraries = Libraries()
        for pid in sorted({*pids, *found}):
            described = containers.describe(pid)
            if described is None or not (procfs.cmdline(pid) or procfs.exe(pid)):
                continue
            statuses = found.get(pid)
            if statuses is None and procfs.may_look_into(pid):
                statuses = tuple(map(doctor.planned, libraries.stacks(pid)))
            processes.append(doctor.Process(pid, described[0], described[2], statuses))
    _print_lines([*doctor.process_lines(processes), *([""] if processes else []), *doctor.host_lines(needs)])
    return PlatformError.exit_status if any(need.met is False for need in needs) else 0


def _watch(
    options: Options, targets: TargetSet, resolver: Resolver, containers: Containers
) -> dict[int, tuple[doctor.ProbeStatus, ...]]:
    """Place the probes for a while; return what became of them, by process. Raises PlatformError, TargetError."""
    source = LiveSource(
        targets,
        Narrowing(),
        containers.describe,
        hook=options.hook,
        named=lambda: resolver.named(targets),
        members=lambda: resolver.members(targets),
    )
    seconds = _WATCHED_S if options.duration is None else options.duration
    try:
        source.start()
        if not options.quiet:
            _say(f"the probes are in place: counting hits for {seconds:g} s; Ctrl-C ends that")
        with contextlib.suppress(KeyboardInterrupt), _ready(options.ready_file) as create:
            create()
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0 and source.has_targets:
                source.poll(min(100, int(left * 1000) + 1))
        return {pid: doctor.observed(source.tls, pid) for pid in source.target_pids()}
    finally:
        source.close()


def _live(options: Options) -> int:
    """Trace."""
    schema = _schema(options)
    _require_privilege()
    node_name = socket.gethostname()
    containers = Containers()
    resolver = Resolver(containers)
    targets = _resolve(resolver, options)
    command = Command(options.command) if options.command else None
    with contextlib.ExitStack() as stack:
        workload = None
        if options.demo:
            from apitrace.demo import Workload  # noqa: PLC0415 - its HTTP servers take 30 ms that no other start needs

            workload = stack.enter_context(Workload())
        if workload is not None:
            targets = TargetSet(pids=workload.pids, description="the built-in workload")
        sinks, table = _outputs(options, node_name)
        calls = _calls(options, schema, sinks, table)
        offset = _clock_offset()
        recorder = None
        if options.write is not None and options.write.endswith(".apitrace"):
            recorder = Recorder(
                options.write,
                new_header(node_name=node_name, clock_offset_ns=offset, targets=targets.description),
            )
        if command is not None:
            command.start()
            targets = TargetSet(
                pids=(*targets.pids, command.pid),
                cgroups=targets.cgroups,
                comms=targets.comms,
                everything=targets.everything,
                follow=targets.follow,
                description=targets.description or f"command {options.command[0]}",
            )
        source = LiveSource(
            targets,
            Narrowing(options.ports, options.hosts),
            containers.describe,
            hook=options.hook,
            named=lambda: resolver.named(targets),
            members=lambda: resolver.members(targets),
            commanded=command is not None,
            unix_listeners=procfs.any_listens_on_unix,
        )
        stack.callback(source.close)
        stats = Stats()

        def say(text: str) -> None:
            if table is not None:
                table.set_status("")
            if not options.quiet:
                _say(text)

        capture = Capture(
            source,
            sinks,
            stats=stats,
            clock_offset_ns=offset,
            snaplen=options.snaplen,
            redactor=Redactor(show=options.show_secrets),
            calls=calls,
            keep=_keep(options),
            recorder=recorder,
            limits=Limits(
                count=options.count,
                duration_ns=None if options.duration is None else int(options.duration * 1e9),
                ended=command.ended if command is not None else lambda: not source.has_targets,
            ),
            say=say,
            status=table.set_status if table is not None and not options.quiet else None,
        )
        try:
            source.start()
            stack.enter_context(_ready(options.ready_file))()
            say(f"tracing {targets.description}; Ctrl-C ends")
            if command is not None:
                command.release()
        except BaseException:
            if command is not None:
                command.cancel()
            raise
        with capture.signals():
            if workload is not None:
                workload.begin()
            capture.run()
        _summary(options, stats)
        if workload is not None:
            for line in workload.compare(capture.shown):
                say(line)
        if command is None:
            return 0
        if capture.stopped_by is not None:
            command.interrupt(capture.stopped_by)
        return command.wait()


def _mode(options: Options) -> Callable[[Options], int]:
    if options.listing:
        return _list
    if options.doctor:
        return _doctor
    return _live if options.read is None else _replay


def run(arguments: Sequence[str]) -> int:
    """Do what the arguments say; return the exit status."""
    with_command = "--" in arguments
    try:
        options = parse(arguments)
        if isinstance(options, int):
            return options
        return _mode(options)(options)
    except CommandError as error:
        _say(str(error))
        return error.exit_status
    except ApitraceError as error:
        _say(str(error))
        return _COMMAND_FAILED if with_command else error.exit_status
    except KeyboardInterrupt:
        return 130


def main() -> NoReturn:
    """Entry point of the `apitrace` command."""
    sys.exit(run(sys.argv[1:]))
