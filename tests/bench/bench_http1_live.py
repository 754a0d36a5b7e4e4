"""What tracing costs a server: nginx with one worker under wrk, side by side in one run.

    sudo .venv/bin/python tests/bench/bench_http1_live.py [--seconds 4] [--rounds 3]

Each round runs the same load untraced, under `tcpdump -w`, under empty programs on apitrace's hooks (the floor: what
no tracer on these hooks can beat), and under apitrace writing JSON lines and a recording. Ratios within a round hold
when the machine's speed drifts; so the medians of ratios are what to quote. Nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
APITRACE = [os.environ.get("APITRACE", str(ROOT / ".venv/bin/apitrace"))]

NGINX = """
worker_processes 1; daemon off; pid {directory}/nginx.pid; error_log {directory}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  keepalive_requests 1000000000;
  server {{ listen 127.0.0.1:{port}; location / {{ return 200 "{body}"; }} }}
}}
"""

FLOOR = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from apitrace.probes.loader import source_directory
os.environ["BCC_KERNEL_SOURCE"] = str(source_directory() / "headers")
import bcc
names = ["sock_send_length", "sock_recv_length", "inet_sock_set_state"]
text = "".join(f"int on_{n}(struct bpf_raw_tracepoint_args *ctx) {{ return 0; }}\\n" for n in names)
b = bcc.BPF(text=text.encode())
for n in names:
    b.attach_raw_tracepoint(tp=n.encode(), fn_name=f"on_{n}".encode())
print("ready", flush=True)
sys.stdin.read()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def nginx(directory: Path, port: int, configuration: str = NGINX) -> Iterator[int]:
    """Run nginx; yield the PID of its master."""
    (directory / "nginx.conf").write_text(configuration.format(directory=directory, port=port, body="x" * 100))
    process = subprocess.Popen(
        ["nginx", "-p", str(directory), "-c", str(directory / "nginx.conf")], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 10
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        if time.monotonic() > deadline:
            sys.exit("nginx did not start")
        time.sleep(0.05)
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def wrk(port: int, seconds: int, scheme: str = "http") -> tuple[int, float]:
    """Return (requests, requests per second)."""
    out = subprocess.run(
        ["wrk", "-t1", "-c16", f"-d{seconds}s", f"{scheme}://127.0.0.1:{port}/index?page=1"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return int(re.search(r"(\d+) requests in", out)[1]), float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1])


@contextlib.contextmanager
def nothing(_: int, __: int, ___: Path, ____: dict[str, float]) -> Iterator[None]:
    yield


@contextlib.contextmanager
def tcpdump(_: int, port: int, directory: Path, __: dict[str, float]) -> Iterator[None]:
    process = subprocess.Popen(
        [
            "tcpdump",
            "-i",
            "lo",
            "-w",
            str(directory / "capture.pcap"),
            "-s",
            "0",
            "-U",
            "-B",
            "32768",
            f"tcp port {port}",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    process.stderr.readline()
    yield
    process.send_signal(signal.SIGINT)
    process.communicate()


@contextlib.contextmanager
def floor(_: int, __: int, ___: Path, ____: dict[str, float]) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-c", FLOOR, str(ROOT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield
    process.communicate()


def apitrace(*flags: str) -> Callable[[int, int, Path, dict[str, float]], contextlib.AbstractContextManager[None]]:
    @contextlib.contextmanager
    def run(pid: int, _: int, directory: Path, facts: dict[str, float]) -> Iterator[None]:
        ready = directory / "ready"
        filled = [flag.format(directory=directory) for flag in flags]
        began = time.monotonic()
        with (directory / "out.jsonl").open("wb") as out:
            process = subprocess.Popen(
                [*APITRACE, "--pid", str(pid), "--ready-file", str(ready), *filled],
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
            )
            while not ready.exists():
                if process.poll() is not None:
                    raise SystemExit(process.stderr.read() if process.stderr else "apitrace ended")
                time.sleep(0.005)
            facts["start_s"] = time.monotonic() - began
            cpu = _cpu_seconds(process.pid)
            yield
            facts["cpu_s"] = _cpu_seconds(process.pid) - cpu
            facts["rss_mb"] = _resident_mb(process.pid)
            drained = time.monotonic()
            process.send_signal(signal.SIGINT)
            facts["summary"] = process.communicate()[1]  # type: ignore[assignment]
            facts["drain_s"] = time.monotonic() - drained
        facts["lines"] = (directory / "out.jsonl").read_bytes().count(b"\n")

    return run


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


CASES = {
    "untraced": nothing,
    "tcpdump -w": tcpdump,
    "floor (empty programs)": floor,
    "apitrace -j": apitrace("-j"),
    "apitrace -w .apitrace": apitrace("-w", "{directory}/bench.apitrace"),
}


RATE = 40_000


def steady(seconds: int) -> None:
    """Print what is shown of a load of a fixed rate, which leaves the reader the time that a full load does not."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        directory.chmod(0o755)
        port, fact = free_port(), {}
        with nginx(directory, port) as master, apitrace("-j")(master, port, directory, fact):
            command = ["h2load", "--h1", "-c16", "-t1", "--rps", str(RATE // 16), "-n", str(RATE * seconds)]
            said = subprocess.run(
                [*command, f"http://127.0.0.1:{port}/index"], check=True, capture_output=True, text=True
            ).stdout
        rate = re.search(r"([\d.]+) req/s", said)[1]
        print(f"steady load: {rate} req/s, shown {fact['lines']:.0f} of {RATE * seconds}")
        print("    " + json.dumps(fact["summary"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rates: dict[str, list[float]] = {name: [] for name in CASES}
    facts: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
    for _ in range(arguments.rounds):
        for name, case in CASES.items():
            with tempfile.TemporaryDirectory() as temporary:
                directory = Path(temporary)
                directory.chmod(0o755)
                port = free_port()
                with nginx(directory, port) as master:
                    pid = int(Path(f"/proc/{master}/task/{master}/children").read_text().split()[0])
                    wrk(port, 1)
                    fact: dict[str, float] = {}
                    with case(pid, port, directory, fact):
                        requests, rate = wrk(port, arguments.seconds)
                fact["requests"] = requests
            rates[name].append(rate)
            facts[name].append(fact)
    print(f"nginx, one worker, wrk -t1 -c16, {arguments.seconds} s, {arguments.rounds} rounds, {os.cpu_count()} cores")
    for name, values in rates.items():
        ratios = [value / base for value, base in zip(values, rates["untraced"], strict=True)]
        line = f"{name:24} {statistics.median(values):9.0f} req/s  {statistics.median(ratios):5.2f} of untraced"
        last = facts[name][-1]
        if "cpu_s" in last:
            line += (
                f"  {1e6 * last['cpu_s'] / last['requests']:5.1f} us CPU/exchange  {last['rss_mb']:.0f} MB"
                f"  start {last['start_s']:.2f} s  drain {last['drain_s']:.2f} s"
            )
            if last["lines"]:
                line += f"  shown {last['lines']:.0f} of {last['requests']:.0f}"
        print(line)
        if "summary" in last:
            print("    " + json.dumps(last["summary"]))
    steady(arguments.seconds)


if __name__ == "__main__":
    main()
