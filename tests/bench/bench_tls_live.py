"""What tracing costs a server that speaks TLS: nginx with one worker under wrk, side by side in one run.

    sudo .venv/bin/python -m tests.bench.bench_tls_live [--seconds 4] [--rounds 3]

Each round runs the same load, over kept-alive connections, untraced; under empty programs at the plain entries of the
functions that programs call, as a tracer does that takes them from the symbol table; under empty programs at the
places that apitrace chooses, at entry and return (the floor: what no tracer at these places can beat); and under
apitrace writing a recording and JSON lines. Ratios within a round hold when the machine's speed drifts; so the medians
of ratios are what to quote. The CPU time of nginx for an exchange says the same without what the reader takes away
from it. Nothing here passes or fails.

All that is of little worth on a machine that does other things too. So a second table tells how long an exchange takes
in a loop that has both ends in one thread, in those of its moments that nothing disturbs: see tests.bench.tls_loop.

tests.bench.traps counts the traps that other runtimes take.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench.bench_http1_live import NGINX, ROOT, apitrace, free_port, nginx, nothing, wrk
from tests.bench.tls_loop import CALLS

TLS_NGINX = NGINX.replace(
    "listen 127.0.0.1:{port};",
    "listen 127.0.0.1:{port} ssl; ssl_certificate {directory}/certificate.pem; "
    "ssl_certificate_key {directory}/key.pem;",
)

EMPTY = """
import os, struct, sys
from apitrace.probes import placement
from apitrace.probes.elf import Elf
from apitrace.probes.image import Image, KPROBE, RAW_TRACEPOINT, load, program_of
from apitrace.probes.kernel import Kernel
from apitrace.probes.loader import has_multi, source_directory
from apitrace.probes.uprobes import UPROBE_MULTI
os.environ["BCC_KERNEL_SOURCE"] = str(source_directory() / "headers")
import bcc
pid, library, chosen = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "chosen"
multi = has_multi(os.uname().release)
tracepoints = ["sock_send_length", "sock_recv_length", "inet_sock_set_state"] if chosen else []
text = "".join(f"int on_{n}(void *ctx) {{ return 0; }}\\n" for n in ["probe", *tracepoints])
compiled = bcc.BPF(text=text.encode())
kinds = {"on_probe": (KPROBE, UPROBE_MULTI if multi else 0)} | {f"on_{n}": (RAW_TRACEPOINT, 0) for n in tracepoints}
image = Image((), tuple(program_of(n, *kind, compiled.dump_func(n.encode()), {}) for n, kind in kinds.items()))
kernel = Kernel(*load(image), multi=multi)
for name in tracepoints:
    kernel.attach(name, f"on_{name}")
with Elf.open(library) as elf:
    if chosen:
        points = placement.plan_openssl(elf)
        entries = [point.entry.offset for point in points]
        returns = [point.returns.offset for point in points if point.returns]
    else:
        names = ("SSL_read", "SSL_write", "SSL_read_ex", "SSL_write_ex", "SSL_do_handshake")
        entries = [elf.offset_of(symbol.address) for symbol in elf.symbols(names).values()]
        returns = []
kernel.probe("on_probe", library, [(offset, 0) for offset in entries], pid=pid)
if returns:
    kernel.probe("on_probe", library, [(offset, 0) for offset in returns], pid=pid, at_return=True)
print("ready", flush=True)
sys.stdin.read()
"""


def empty(places: str) -> Callable[[int, int, Path, dict[str, float]], contextlib.AbstractContextManager[None]]:
    """Return a case that runs empty programs at "plain" or "chosen" places."""

    @contextlib.contextmanager
    def run(pid: int, _: int, __: Path, ___: dict[str, float]) -> Iterator[None]:
        maps = Path(f"/proc/{pid}/maps").read_text().split()
        library = next(word for word in maps if "/libssl.so" in word)
        process = subprocess.Popen(
            [sys.executable, "-c", EMPTY, str(pid), library, places], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, cwd=ROOT,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
        process.communicate()

    return run


CASES = {
    "untraced": nothing,
    "empty, plain entries": empty("plain"),
    "empty, places chosen": empty("chosen"),
    "apitrace -w .apitrace": apitrace("-w", "{directory}/bench.apitrace"),
    "apitrace -j": apitrace("-j"),
}
FLOOR = "empty, places chosen"
BATCHES = 1000
"""Of the loop: half a second."""


def certificate(directory: Path) -> None:
    """Make key.pem and certificate.pem, as servers have them today: ECDSA on P-256."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-days", "2"]
    command += ["-keyout", str(directory / "key.pem"), "-out", str(directory / "certificate.pem")]
    subprocess.run(command, check=True, capture_output=True)


def cpu_ns(pid: int) -> int:
    """Return the CPU time of a process's first thread: of nginx's worker, all of it."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def worker(master: int) -> int:
    return int(Path(f"/proc/{master}/task/{master}/children").read_text().split()[0])


def once(case: Callable[..., contextlib.AbstractContextManager[None]], seconds: int) -> dict[str, float]:
    """Run the load under a case; return what was measured."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        directory.chmod(0o755)
        certificate(directory)
        port, fact = free_port(), dict[str, float]()
        with nginx(directory, port, TLS_NGINX) as master:
            pid = worker(master)
            wrk(port, 1, "https")
            with case(pid, port, directory, fact):
                before = cpu_ns(pid)
                requests, rate = wrk(port, seconds, "https")
                fact["nginx_us"] = (cpu_ns(pid) - before) / 1000 / requests
    return fact | {"requests": requests, "rate": rate}


def undisturbed(case: Callable[..., contextlib.AbstractContextManager[None]]) -> float:
    """Return how long an exchange takes in a loop, in us."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        certificate(directory)
        loop = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.tls_loop", str(directory)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        assert loop.stdin is not None
        assert loop.stdout is not None
        assert loop.stdout.readline() == "ready\n"
        with case(loop.pid, 0, directory, {}):
            loop.stdin.write(f"{BATCHES}\n")
            loop.stdin.flush()
            shortest = float(loop.stdout.readline())
        loop.communicate()
    return shortest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    facts: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
    for _ in range(arguments.rounds):
        for name, case in CASES.items():
            facts[name].append(once(case, arguments.seconds))
    print(
        f"nginx, one worker, TLS, wrk -t1 -c16, {arguments.seconds} s, {arguments.rounds} rounds, "
        f"{os.cpu_count()} cores"
    )

    def ratio(name: str, base: str, what: str) -> float:
        pairs = zip(facts[name], facts[base], strict=True)
        return statistics.median(mine[what] / other[what] for mine, other in pairs)

    for name, rounds in facts.items():
        rate, cpu = (statistics.median(fact[what] for fact in rounds) for what in ("rate", "nginx_us"))
        line = (
            f"{name:22} {rate:9.0f} req/s  {ratio(name, 'untraced', 'rate'):5.2f} of untraced "
            f"{ratio(name, FLOOR, 'rate'):5.2f} of the floor  nginx {cpu:5.1f} us CPU/exchange: "
            f"{1 / ratio(name, 'untraced', 'nginx_us'):.2f}, {1 / ratio(name, FLOOR, 'nginx_us'):.2f}"
        )
        last = rounds[-1]
        if "cpu_s" in last:
            line += f"  apitrace {1e6 * last['cpu_s'] / last['requests']:5.1f}  start {last['start_s']:.2f} s"
            if last["lines"]:
                line += f"  shown {last['lines']:.0f} of {last['requests']:.0f}"
        print(line, flush=True)
        if "summary" in last:
            print("    " + json.dumps(last["summary"]))
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(arguments.rounds):
        for name, case in CASES.items():
            times[name].append(undisturbed(case))
    best = {name: min(each) for name, each in times.items()}
    print(f"the loop: the shortest time of an exchange, {CALLS} calls of the TLS library")
    untraced, floor = best["untraced"], best[FLOOR]
    for name, time in best.items():
        print(
            f"{name:22} {time:6.1f} us  {untraced / time:5.2f} of untraced  {floor / time:5.2f} of the floor"
            f"  +{(time - untraced) / CALLS:.2f} us a call"
        )


if __name__ == "__main__":
    main()
