"""TLS libraries that only a container has: found through its root, whatever lies at that path on the host."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from tests.live.calls import without
from tests.live.containers import Engine, image_of, with_libraries
from tests.live.harness import Nginx, assert_same, configure_nginx, listening, program, until, unused_port
from tests.live.tls import TlsLab, assert_exactly_over_tls


def test_nginx_with_a_libssl_of_its_own(tls_lab: TlsLab, docker: Engine, shared: Path) -> None:
    image, name = "localhost/nginx:1", f"nginx-{uuid.uuid4().hex[:6]}"
    files = with_libraries(program("nginx"))
    assert any("libssl" in path for path in files)
    docker.load(image_of(files, name=image))
    prefix, port = shared / name, unused_port()
    certificates = shutil.copytree(tls_lab.certificates, shared / f"{name}-certificates")
    configure_nginx(prefix, port, 2, tls=(certificates, "TLSv1.3"))
    command = ["/usr/sbin/nginx", "-p", str(prefix), "-c", str(prefix / "nginx.conf"), "-e", str(prefix / "error.log")]
    server = tls_lab.start(
        *docker.run_arguments(name, *command, image=image),
        journal=prefix / "journal", kind=Nginx, extra=docker.environment,
    )  # fmt: skip
    server.address = ("127.0.0.1", port)
    try:
        until(lambda: listening(port), "nginx listens")
        requests = [{"path": "/page.html"}, {"path": "/missing"}, {"method": "HEAD", "path": "/page.html"}]
        client = tls_lab.tls_client(server, requests, connections=3, rounds=2)
        with tls_lab.trace("--container", name) as capture:
            client.go()
            client.wait_done()
            calls = client.calls(18)
            assert_same(without(calls, "date", "connection"), server.calls(18))
            capture.wait_shown(18)
        assert_exactly_over_tls(capture, server=calls)
        assert {record["process"]["container"]["name"] for record in capture.exchanges} == {name}
    finally:
        docker.remove(name)


def test_a_root_file_system_of_musl(
    tls_lab: TlsLab, docker: Engine, shared: Path, c_build: Callable[[str], Path]
) -> None:
    """As Alpine's: the dynamic loader, the C library and OpenSSL are others than the host's."""
    image, name = "localhost/musl:1", f"musl-{uuid.uuid4().hex[:6]}"
    binary = c_build("musl")
    loader = next(Path("/lib").glob("ld-musl-*.so.1"))
    files = {"usr/bin/client": binary.read_bytes(), f"usr/lib/{loader.name}": loader.read_bytes()}
    files |= {f"usr/bin/musl/{path.name}": path.read_bytes() for path in (binary.parent / "musl").iterdir()}
    docker.load(image_of(files, {f"usr/lib/libc.{loader.name[3:]}": loader.name}, image))
    server, ca = tls_lab.tls_origin(), shutil.copy(tls_lab.ca, shared)
    arguments = ["/usr/bin/client", "client", str(server.address[1]), str(ca), "plain", "7"]
    client = tls_lab.start(
        *docker.run_arguments(name, *arguments, image=image), journal=tls_lab.path("none"), extra=docker.environment
    )
    try:
        until(lambda: docker("ps", "--quiet", f"--filter=name={name}", "--filter=status=running"), f"{name} runs")
        with tls_lab.trace("--container", name) as capture:
            for _ in range(2):
                client.go()
                client.wait_done()
            calls = server.calls(14)
            capture.wait_shown(14)
        assert_exactly_over_tls(capture, client=calls)
        assert {record["process"]["container"]["name"] for record in capture.exchanges} == {name}
    finally:
        docker.remove(name)
