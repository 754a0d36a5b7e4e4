"""Containers, as real daemons' sockets and state files told of them; and as broken and hostile ones might."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from apitrace.exchange import Container
from apitrace.probes import procfs
from apitrace.targets import containers
from apitrace.targets.containers import Containers, Found
from tests.unit.targets.recorded import Host, ok

IMAGE = "localhost/host:1"
OUTER, INNER = "a" * 64, "b" * 64
LIST = "/containers/json?all=true"


def only(id_: str) -> str:
    return f"{LIST}&filters=%7B%22id%22%3A%5B%22{id_}%22%5D%7D"


def on(host: Host) -> Containers:
    return Containers(root=host.root, environment=host.environment)


def by_name(found: list[Found]) -> dict[str, Found]:
    return {one.container.name or "": one for one in found}


def first_process(host: Host, id_: str) -> int:
    """The recorded process whose parent is not in the container."""
    inside = [pid for pid in procfs.pids(root=host.root) if id_ in containers.container_ids(pid, root=host.root)]
    return min(inside)


# -- what was recorded -------------------------------------------------------------------------------------------------


def test_docker_tells_of_its_containers_by_its_socket(host: Host) -> None:
    host.load("docker")
    known = on(host)
    found = by_name(known.all())
    assert sorted(found) == ["old", "web", "web-2"]
    web = found["web"]
    id_ = web.container.id
    assert web.container == Container(
        id=id_, name="web", image=IMAGE, runtime="docker", pod="cart-0", namespace=None,
        labels=(("io.kubernetes.pod.name", "cart-0"), ("tier", "front")),
    )  # fmt: skip
    assert (web.names, web.state, web.running) == (("web",), "running", True)
    assert web.pid() == first_process(host, id_)
    other = found["web-2"].container
    assert other == Container(id=other.id, name="web-2", image=IMAGE, runtime="docker")
    assert (found["old"].state, found["old"].running, found["old"].pid()) == ("exited", False, None)
    # containerd was asked too: the same containers, without their names.
    assert known.asked == ("docker", "containerd")
    assert known.silent == {
        "podman": f"no {host.root}/run/podman/podman.sock",
        "podman/cri-o": f"no {host.root}/var/lib/containers/storage",
    }


def test_without_dockers_socket_its_containers_are_in_containerds_state_without_their_names(host: Host) -> None:
    host.load("docker")
    host.environment["DOCKER_HOST"] = "tcp://10.0.0.1:2375"
    known = on(host)
    found = known.all()
    assert [one.container for one in found] == [
        Container(id=one.container.id, runtime="docker") for one in sorted(found, key=lambda one: one.container.id)
    ]
    assert [(one.state, one.pid() == first_process(host, one.container.id)) for one in found] == [("running", True)] * 2
    assert known.silent["docker"] == "DOCKER_HOST=tcp://10.0.0.1:2375 is no socket of this host"


@pytest.mark.parametrize("api", [True, False])
def test_podman_tells_the_same_by_its_socket_and_by_its_files_but_for_labels(host: Host, api: bool) -> None:
    host.load("podman")
    if not api:
        host.environment["CONTAINER_HOST"] = "unix:///none.sock"
    known = on(host)
    found = by_name(known.all())
    assert sorted(found) == ["old", "web", "web-2"]
    web = found["web"].container
    labels = (("io.kubernetes.pod.name", "cart-0"), ("tier", "front")) if api else ()
    assert web == Container(
        id=web.id, name="web", image=IMAGE, runtime="podman", pod="cart-0" if api else None, labels=labels
    )
    assert found["web"].pid() == first_process(host, web.id)
    other = found["web-2"].container
    assert other == Container(id=other.id, name="web-2", image=IMAGE, runtime="podman")
    assert found["web-2"].pid() == first_process(host, other.id)
    assert (found["old"].running, found["old"].pid()) == (False, None)
    assert known.asked == (("podman", "podman/cri-o") if api else ("podman/cri-o",))
    if not api:
        assert known.silent["podman"] == f"{host.root}/none.sock: No such file or directory"


def test_containerd_tells_of_pods_by_cris_annotations(host: Host) -> None:
    host.load("containerd")
    known = on(host)
    found = known.all()
    assert sorted(
        (one.container.namespace, one.container.pod, one.container.name or "", one.container.image or "")
        for one in found
    ) == [
        ("shop", "cart-0", "", ""),  # the sandbox
        ("shop", "cart-0", "cache", IMAGE),
        ("shop", "cart-0", "web", IMAGE),
        ("test", "cart-0", "", ""),
        ("test", "cart-0", "web", IMAGE),
    ]
    for one in found:
        assert one.container.runtime == "containerd"
        assert one.running
        assert one.pid() == first_process(host, one.container.id)
    assert known.asked == ("containerd",)


@pytest.mark.parametrize("name", ["docker", "podman", "containerd"])
def test_every_process_in_a_container_is_identified(host: Host, name: str) -> None:
    host.load(name)
    expected = {one.container.id: one.container for one in on(host).all()}
    known = on(host)
    for pid in procfs.pids(root=host.root):
        (id_,) = containers.container_ids(pid, root=host.root)
        assert known.identify(pid) == expected[id_]


def test_a_process_is_described_with_name_program_and_container(host: Host) -> None:
    host.load("docker")
    known = on(host)
    joined = next(pid for pid in procfs.pids(root=host.root) if procfs.comm(pid, root=host.root) == "sh")
    described = known.describe(joined)
    assert described is not None
    comm, exe, container = described
    assert (comm, exe) == ("sh", "/usr/bin/dash")
    assert container is not None
    assert container.name == "web"
    assert known.describe(1 << 22) is None


def test_each_container_is_asked_about_once(host: Host) -> None:
    host.load("docker")
    known = on(host)
    pids = procfs.pids(root=host.root)
    ids = {containers.container_ids(pid, root=host.root)[0] for pid in pids}
    for pid in (*pids, *pids):
        known.identify(pid)
    assert sorted(host.asked) == sorted(map(only, ids))


def test_containers_that_were_listed_are_not_asked_about_again(host: Host) -> None:
    host.load("docker")
    known = on(host)
    known.all()
    for pid in procfs.pids(root=host.root):
        assert known.identify(pid) is not None
    assert host.asked == [LIST]


# -- identification ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "ids"),
    [
        (f"/docker/{OUTER}", (OUTER,)),
        (f"/system.slice/docker-{OUTER}.scope", (OUTER,)),
        (f"/machine.slice/libpod-{OUTER}.scope/container", (OUTER,)),
        (f"/libpod_parent/libpod-{OUTER}", (OUTER,)),
        (f"/machine.slice/libpod-conmon-{OUTER}.scope", ()),
        (f"/kubepods.slice/kubepods-pod1.slice/crio-{OUTER}.scope", (OUTER,)),
        (f"/kubepods.slice/kubepods-pod1.slice/crio-conmon-{OUTER}.scope", ()),
        (f"/kubepods/besteffort/podaaaa2b4a-f398-41c0-928b-049e1cc4ec40/{OUTER}", (OUTER,)),
        (f"/kubepods.slice/kubepods-pod1.slice/cri-containerd-{OUTER}.scope", (OUTER,)),
        (f"/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:{OUTER}", (OUTER,)),
        (f"/docker/{OUTER}/docker/{INNER}", (OUTER, INNER)),
        (f"/docker/{OUTER}/system.slice/docker-{OUTER}.scope", (OUTER,)),
        ("/user.slice/user-1000.slice/session-2.scope", ()),
        (f"/x/{OUTER}0", ()),
        ("/", ()),
    ],
)
def test_ids_are_read_from_the_cgroups_names(host: Host, path: str, ids: tuple[str, ...]) -> None:
    host.process(10, cgroup=f"1:name=systemd:/\n0::{path}\n")
    assert containers.container_ids(10, root=host.root) == ids
    host.process(11, cgroup=f"1:name=systemd:{path}\n0::/system.slice/docker.service\n")
    assert containers.container_ids(11, root=host.root) == ids


def nested(host: Host, *known: tuple[str, str]) -> list[str]:
    """Docker that knows these (ID, name), and process 10 in one container inside another."""
    host.process(10, cgroup=f"0::/docker/{OUTER}/docker/{INNER}\n")
    items = {only(id_): [{"Id": id_, "Names": [f"/{name}"], "State": "running"}] for id_, name in known}
    return host.serve("var/run/docker.sock", lambda url: ok(items.get(url, [])))


def test_of_nested_containers_the_innermost_that_is_known_counts(host: Host) -> None:
    nested(host, (OUTER, "kind-control-plane"), (INNER, "web"))
    assert on(host).identify(10) == Container(id=INNER, name="web", runtime="docker")


def test_a_container_inside_one_that_is_known_is_known_as_that(host: Host) -> None:
    nested(host, (OUTER, "kind-control-plane"))
    assert on(host).identify(10) == Container(id=OUTER, name="kind-control-plane", runtime="docker")


def test_of_a_container_that_nobody_knows_the_id_is_known(host: Host) -> None:
    nested(host)
    assert on(host).identify(10) == Container(id=INNER)


def test_what_nobody_knew_is_asked_again_only_after_a_while(host: Host, clock: SimpleNamespace) -> None:
    asked = nested(host)
    known = on(host)
    for _ in range(3):
        known.identify(10)
    assert asked == [only(INNER), only(OUTER)]
    clock.now += 31
    known.identify(10)
    assert asked == [only(INNER), only(OUTER)] * 2


def test_what_is_remembered_is_bounded(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "_MAX_KNOWN", 2)
    asked = host.serve("var/run/docker.sock", lambda _: ok([]))
    known = on(host)
    ids = [digit * 64 for digit in "123"]
    for pid, id_ in enumerate(ids):
        host.process(pid, cgroup=f"0::/docker/{id_}\n")
        known.identify(pid)
    known.identify(2)
    assert asked == [only(id_) for id_ in ids]
    known.identify(0)
    assert asked == [only(id_) for id_ in (*ids, ids[0])]


# -- sockets that do not behave ----------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The clock that containers.py goes by; it stands still."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(containers, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "_TIMEOUT", 0.1)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "does not speak HTTP"),
        (b"\x16\x03\x01", "does not speak HTTP"),
        (b"HTTP/1.0 500 Oops\r\n\r\n[]", "answers 500"),
        (b"HTTP/1.0\r\n\r\n[]", "does not speak HTTP"),
    ],
)
def test_a_socket_that_answers_wrongly_is_left_out(host: Host, answer: bytes, why: str) -> None:
    host.serve("var/run/docker.sock", lambda _: [answer])
    known = on(host)
    assert known.all() == []
    assert known.silent["docker"] == f"{host.root}/var/run/docker.sock {why}"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"{}", b'"x"', b"[", b"[" * 100_000, b"[null, 1, [], {}]", b'[{"Id": 1}]', b'[{"Id": "\\ud800"}]',
    ],
)  # fmt: skip
def test_an_answer_that_lists_no_containers_lists_none(host: Host, body: bytes) -> None:
    host.serve("var/run/docker.sock", lambda _: [b"HTTP/1.0 200 OK\r\n\r\n", body])
    assert on(host).all() == []


def test_fields_of_the_wrong_type_are_unknown(host: Host) -> None:
    item: dict[str, Any] = {
        "Id": OUTER, "Names": [1, None, "/ok"], "Image": {}, "Labels": {"a": 1, "b": "c"}, "State": [], "Pid": "7"
    }  # fmt: skip
    host.serve("var/run/docker.sock", lambda _: ok([item, {"Id": INNER, "Names": "x", "Labels": []}]))
    one, other = on(host).all()
    assert one.container == Container(id=OUTER, name="ok", runtime="docker", labels=(("b", "c"),))
    assert (one.state, one.pid()) == ("unknown", None)
    assert other.container == Container(id=INNER, runtime="docker")


def test_docker_that_does_not_know_a_containers_process_gives_none(host: Host) -> None:
    about = [ok({"State": None}), ok([]), [b"HTTP/1.0 404 Not Found\r\n\r\n"]]
    host.serve("var/run/docker.sock", lambda url: ok([{"Id": OUTER}]) if url == LIST else about.pop())
    (one,) = on(host).all()
    assert [one.pid(), one.pid(), one.pid()] == [None, None, None]
    assert about == []


@pytest.mark.usefixtures("impatient")
def test_a_daemon_that_hangs_is_left_alone_for_a_while(host: Host) -> None:
    released = threading.Event()

    def hang(_: str) -> Iterator[bytes]:
        released.wait()
        yield b""

    asked = host.serve("var/run/docker.sock", hang)
    host.load("podman")
    known = on(host)
    assert sorted(by_name(known.all())) == ["old", "web", "web-2"]
    assert known.silent == {
        "docker": f"{host.root}/var/run/docker.sock does not answer", "containerd": f"no {host.root}/run/containerd"
    }  # fmt: skip
    known.all()
    assert asked == [LIST]
    released.set()


@pytest.mark.usefixtures("impatient")
def test_an_answer_that_drips_in_takes_no_longer_than_one_that_does_not_come(host: Host) -> None:
    def drip(_: str) -> Iterator[bytes]:
        for _number in range(100):  # 2 s
            if done.wait(0.02):
                return
            yield b"H"

    done = threading.Event()
    host.serve("var/run/docker.sock", drip)
    known = on(host)
    assert known.all() == []
    done.set()
    assert known.silent["docker"] == f"{host.root}/var/run/docker.sock does not answer"


def test_podman_under_dockers_name_is_podman(host: Host) -> None:
    host.load("podman")
    socket = next((host.root / "tmp").glob("*/podman.sock"))
    host.link("var/run/docker.sock", str(socket))
    known = on(host)
    assert {one.container.runtime for one in known.all()} == {"podman"}
    assert known.silent["docker"] == f"no {host.root}/var/run/docker.sock"


def test_users_own_daemons_are_asked_too(host: Host) -> None:
    host.serve("var/run/docker.sock", lambda _: ok([{"Id": OUTER, "Names": ["/a"]}]))
    host.serve("run/user/1000/docker.sock", lambda _: ok([{"Id": INNER, "Names": ["/b"]}]))
    assert [(one.container.id, one.container.name) for one in on(host).all()] == [(OUTER, "a"), (INNER, "b")]


def test_names_from_links_come_after_the_containers_own(host: Host) -> None:
    host.serve("var/run/docker.sock", lambda _: ok([{"Id": OUTER, "Names": ["/app/db", "/postgres"]}]))
    (one,) = on(host).all()
    assert (one.container.name, one.names) == ("postgres", ("postgres", "app/db"))


# -- state files -------------------------------------------------------------------------------------------------------


def stored(host: Host, id_: str, name: str, annotations: dict[str, str], *, user: str = "") -> Path:
    """Put a container into containers/storage, as Podman 4 and CRI-O do."""
    graph = f"{user}/.local/share/containers/storage" if user else "var/lib/containers/storage"
    host.write(f"{graph}/overlay-containers/containers.json", json.dumps([{"id": id_, "names": [name]}]))
    return host.write(
        f"{graph}/overlay-containers/{id_}/userdata/config.json", json.dumps({"annotations": annotations})
    )


LIBPOD = {"io.container.manager": "libpod"}


def pid_file(host: Host, id_: str, pid: int, run: str = "run/containers/storage") -> Path:
    return host.write(f"{run}/overlay-containers/{id_}/userdata/pidfile", str(pid))


def test_a_pid_file_that_stayed_when_its_container_stopped_names_no_process(host: Host) -> None:
    stored(host, OUTER, "web", LIBPOD)
    pid_file(host, OUTER, 10)
    assert on(host).all()[0].state == "stopped"  # no such process
    host.process(10, cgroup=f"0::/docker/{INNER}\n")  # its number went to another container
    assert on(host).all()[0].state == "stopped"
    host.process(10, cgroup=f"0::/machine.slice/libpod-{OUTER}.scope\n")
    assert on(host).all()[0].state == "running"
    host.process(10, cgroup="0::/user.slice\n")  # podman run --cgroups=disabled
    (one,) = on(host).all()
    assert (one.state, one.pid()) == ("running", 10)


@pytest.mark.parametrize("text", ["", "x", "-1", "0", "10\n20"])
def test_a_pid_file_that_holds_no_number_names_no_process(host: Host, text: str) -> None:
    stored(host, OUTER, "web", LIBPOD)
    pid_file(host, OUTER, 0).write_text(text)
    assert on(host).all()[0].state == "stopped"


def test_containers_of_run_rm_are_listed_apart(host: Host) -> None:
    config = stored(host, OUTER, "web", LIBPOD)
    listed = config.parents[2] / "containers.json"
    listed.rename(listed.with_name("volatile-containers.json"))
    assert [one.container.name for one in on(host).all()] == ["web"]


def test_in_transient_mode_the_list_is_in_the_run_directory(host: Host) -> None:
    config = stored(host, OUTER, "web", LIBPOD)
    listed = config.parents[2] / "containers.json"
    host.write("run/containers/storage/overlay-containers/containers.json", listed.read_text())
    listed.unlink()
    assert [one.container.name for one in on(host).all()] == ["web"]


def test_buildahs_working_containers_are_none(host: Host) -> None:
    stored(host, OUTER, "working-container", {})
    assert on(host).all() == []


def test_cri_o_keeps_its_configuration_beside_the_pid_file_and_its_labels_in_it(host: Host) -> None:
    # Keys and forms as in `crictl inspectp` of CRI-O 1.22.
    labels = {
        "io.kubernetes.container.name": "web", "io.kubernetes.pod.name": "cart-0",
        "io.kubernetes.pod.namespace": "shop", "run": "cart",
    }  # fmt: skip
    annotations = {
        "io.container.manager": "cri-o",
        "io.kubernetes.cri-o.ImageName": "registry.example/cart:2",
        "io.kubernetes.cri-o.Labels": json.dumps(labels),
    }
    stored(host, OUTER, "k8s_web_cart-0_shop_aaaa2b4a-f398-41c0-928b-049e1cc4ec40_0", annotations).rename(
        host.write(f"run/containers/storage/overlay-containers/{OUTER}/userdata/config.json", "")
    )
    host.process(10, cgroup=f"0::/kubepods.slice/kubepods-pod1.slice/crio-{OUTER}.scope\n")
    pid_file(host, OUTER, 10)
    (one,) = on(host).all()
    assert one.container == Container(
        id=OUTER, name="web", image="registry.example/cart:2", runtime="cri-o", pod="cart-0", namespace="shop",
        labels=tuple(sorted(labels.items())),
    )  # fmt: skip
    assert one.names == ("web", "k8s_web_cart-0_shop_aaaa2b4a-f398-41c0-928b-049e1cc4ec40_0")
    assert (one.state, one.pid()) == ("running", 10)


def test_storage_is_where_its_configuration_says(host: Host) -> None:
    stored(host, OUTER, "web", LIBPOD)
    (host.root / "var/lib/containers").rename(host.root / "srv")
    host.write("etc/containers/storage.conf", '# graphroot = "/no"\n[storage]\n  graphroot = "/srv/storage"\n')
    assert [one.container.name for one in on(host).all()] == ["web"]


def test_rootless_containers_of_users_who_are_logged_in_are_found(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    homes = {1000: "/home/ann"}
    monkeypatch.setattr(containers, "pwd", SimpleNamespace(getpwuid=lambda uid: SimpleNamespace(pw_dir=homes[uid])))
    stored(host, OUTER, "mine", LIBPOD, user="home/ann")
    host.process(10, cgroup=f"0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{OUTER}.scope\n")
    pid_file(host, OUTER, 10, "run/user/1000/containers")
    (host.root / "run/user/1001/containers").mkdir(parents=True)  # of a user without an account
    (one,) = on(host).all()
    assert (one.container.name, one.state, one.pid()) == ("mine", "running", 10)


@pytest.mark.parametrize("text", ["", "null", "{}", "[[]]", '[{"id": 1}]', '[{"id": "../../etc"}]', "[" * 100_000])
def test_a_list_of_containers_that_holds_something_else_lists_none(host: Host, text: str) -> None:
    config = stored(host, OUTER, "web", LIBPOD)
    (config.parents[2] / "containers.json").write_text(text)
    assert on(host).all() == []


def test_a_state_file_that_would_block_or_exhaust_us_is_not_read(host: Host) -> None:
    config = stored(host, OUTER, "web", LIBPOD)
    config.unlink()
    os.mkfifo(config)
    assert on(host).all() == []
    config.unlink()
    config.symlink_to("/dev/zero")
    assert on(host).all() == []
    config.unlink()
    with config.open("wb") as file:
        file.truncate(1 << 40)
    assert on(host).all() == []


def task(
    host: Host, namespace: str, id_: str, annotations: dict[str, str] | None, state: str = "run/containerd"
) -> None:
    directory = f"{state}/io.containerd.runtime.v2.task/{namespace}/{id_}"
    host.write(f"{directory}/config.json", json.dumps({"annotations": annotations}))
    host.write(f"{directory}/init.pid", "10")


@pytest.mark.parametrize("state", ["run/containerd", "run/k3s/containerd", "run/docker/containerd/daemon"])
def test_containerds_state_is_found_where_distributions_put_it(host: Host, state: str) -> None:
    task(host, "k8s.io", OUTER, {"io.kubernetes.cri.container-name": "web"}, state)
    assert [one.container for one in on(host).all()] == [Container(id=OUTER, name="web", runtime="containerd")]


def test_nerdctl_and_ctr_name_their_containers_too(host: Host) -> None:
    task(host, "default", OUTER, {"nerdctl/name": "web"})
    task(host, "default", "redis", None)
    host.process(10, cgroup="0::/default/redis\n")
    assert [(one.container.id, one.container.name, one.pid()) for one in on(host).all()] == [
        (OUTER, "web", 10), ("redis", "redis", 10),
    ]  # fmt: skip


def test_a_task_that_is_being_made_is_not_yet_there(host: Host) -> None:
    (host.root / f"run/containerd/io.containerd.runtime.v2.task/moby/{OUTER}").mkdir(parents=True)
    assert on(host).all() == []


def test_a_runtime_that_may_not_be_looked_at_is_left_out(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> bool:
        raise PermissionError(13, "Permission denied", "/var/lib/containers/storage")

    task(host, "default", "redis", None)
    monkeypatch.setattr(Path, "is_dir", refuse)
    known = on(host)
    assert known.all() == []
    assert known.silent["podman/cri-o"] == "[Errno 13] Permission denied: '/var/lib/containers/storage'"
