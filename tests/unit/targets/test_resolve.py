"""The command line's targets, on recorded hosts and made-up ones: what they mean, and what is said when they fail."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from apitrace.errors import TargetError
from apitrace.exchange import Container
from apitrace.probes import procfs
from apitrace.targets.containers import Containers
from apitrace.targets.resolve import Resolver
from apitrace.targets.target import Cgroup, TargetSet
from tests.unit.targets.recorded import V2_ONLY, Host, ok


def on(host: Host) -> Resolver:
    return Resolver(Containers(root=host.root, environment=host.environment), root=host.root)


def refusal(host: Host, **targets: Sequence[Any]) -> str:
    with pytest.raises(TargetError) as error:
        on(host).resolve(**targets)  # type: ignore[arg-type] # a table of options
    text = str(error.value)
    assert text.isprintable()  # one line, and nothing that a terminal obeys
    return text.replace(str(host.root), "")


def cgroup(host: Host, path: str, hierarchy: int = 0) -> Cgroup:
    directory = host.root / path
    return Cgroup(str(directory), hierarchy, directory.stat().st_ino)


@pytest.fixture
def family(host: Host) -> Host:
    """A process tree: 10 nginx with workers 11 and 12, 20 sh with 21 curl, which has 22; 30 nginx alone."""
    for pid, comm, ppid in (
        (1, "init", 0), (10, "nginx", 1), (11, "nginx", 10), (12, "nginx", 10),
        (20, "sh", 1), (21, "curl", 20), (22, "helper", 21), (30, "nginx", 1),
    ):  # fmt: skip
        host.process(pid, comm, ppid=ppid)
    return host


# -- processes ---------------------------------------------------------------------------------------------------------


def test_a_pid_means_the_process_and_what_is_below_it(family: Host) -> None:
    assert on(family).resolve(pids=(20,)) == TargetSet(pids=(20, 21, 22), description="pid 20 (sh) and 2 below it")


def test_without_follow_a_pid_means_that_process_alone(family: Host) -> None:
    assert on(family).resolve(pids=(20,), follow=False) == TargetSet(
        pids=(20,), follow=False, description="pid 20 (sh)"
    )


def test_pids_add_up_and_repeats_do_not_count(family: Host) -> None:
    assert on(family).resolve(pids=(30, 20, 21, 30)) == TargetSet(
        pids=(30, 20, 21, 22), description="pid 30 (nginx), pid 20 (sh) and 2 below it and pid 21 (curl) and 1 below it"
    )


def test_a_pid_that_does_not_exist_is_refused(family: Host) -> None:
    assert refusal(family, pids=(30, 31)) == (
        "no process has the id 31: it may have ended; --comm NAME waits for one by its name"
    )


def test_a_thread_is_refused_with_the_process_it_belongs_to(family: Host) -> None:
    family.process(33, "worker")
    family.write("proc/33/status", "Name:\tworker\nTgid:\t30\nPid:\t33\n")
    assert refusal(family, pids=(33,)) == (
        "33 is a thread of process 30 (nginx), and processes are traced: use --pid 30"
    )


def test_a_process_that_has_ended_is_refused(family: Host) -> None:
    family.process(33, "old", ppid=20, state="Z")
    assert refusal(family, pids=(33,)) == (
        "process 33 (old) has ended, and only waits for its parent 20 to take note"
    )


def test_names_that_processes_chose_do_not_reach_the_terminal_as_they_are(family: Host) -> None:
    family.write("proc/30/comm", "\x1b[2J\n")
    assert on(family).resolve(pids=(30,)).description == r"pid 30 (\x1b[2J)"


def test_a_name_means_those_that_have_it_now_with_their_children_and_those_to_come(family: Host) -> None:
    assert on(family).resolve(comms=("sh", "nginx")) == TargetSet(
        pids=(20, 21, 22, 10, 11, 12, 30), comms=("sh", "nginx"),
        description="processes named sh (1 now) and processes named nginx (4 now)",
    )  # fmt: skip
    assert on(family).resolve(comms=("nginx",), follow=False).pids == (10, 11, 12, 30)


def test_a_name_that_nobody_has_is_waited_for(family: Host) -> None:
    assert on(family).resolve(comms=("gunicorn",)) == TargetSet(
        comms=("gunicorn",), description="processes named gunicorn (none yet)"
    )


def test_a_long_name_is_cut_as_the_kernel_cuts_it(family: Host) -> None:
    family.process(40, "apitrace-long-n")
    assert on(family).resolve(comms=("apitrace-long-name",)) == TargetSet(
        pids=(40,), comms=("apitrace-long-n",),
        description="processes named apitrace-long-n (1 now, as the kernel cuts 'apitrace-long-name' to 15 bytes)",
    )  # fmt: skip
    (kept,) = on(family).resolve(comms=("fünfzehn-bytes-ü",)).comms
    assert os.fsencode(kept) == "fünfzehn-bytes-ü".encode()[:15]


def test_every_process_is_a_target_of_its_own_kind(family: Host) -> None:
    assert on(family).resolve(everything=True) == TargetSet(everything=True, description="every process of this host")


# -- cgroups -----------------------------------------------------------------------------------------------------------


def test_a_cgroup_is_found_and_its_processes_are_its_members(host: Host) -> None:
    host.load("docker")
    top = next((host.root / "sys/fs/cgroup/unified").glob("apitrace-*"))
    resolver = on(host)
    targets = resolver.resolve(cgroups=(f"/{top.name}",))
    assert targets == TargetSet(
        cgroups=(cgroup(host, f"sys/fs/cgroup/unified/{top.name}"),), description=f"cgroup {top}"
    )
    assert resolver.members(targets) == tuple(procfs.pids(root=host.root))
    assert resolver.named(targets) == ()


def test_what_is_no_cgroup_is_refused(host: Host) -> None:
    host.load("docker")
    assert refusal(host, cgroups=("/nginx.service",)) == (
        "'/nginx.service' is no cgroup: name one below /sys/fs/cgroup, or as /proc/PID/cgroup does"
    )


# -- containers --------------------------------------------------------------------------------------------------------


def recorded(host: Host, name: str) -> tuple[Container, str]:
    """A recorded container, and its v2 cgroup's path."""
    found = Containers(root=host.root, environment=host.environment).all()
    (container,) = (one.container for one in found if one.container.name == name)
    paths = {place.path for pid in procfs.pids(root=host.root) for place in procfs.cgroups(pid, root=host.root)}
    return container, next(path for path in paths if container.id in path)


@pytest.mark.parametrize("runtime", ["docker", "podman"])
def test_a_container_is_found_by_name_id_and_the_ids_beginning(host: Host, runtime: str) -> None:
    host.load(runtime)
    web, path = recorded(host, "web")
    id_ = web.id
    expected = TargetSet(
        cgroups=(cgroup(host, f"sys/fs/cgroup/unified{path}"),),
        container=web,
        description=f"container web ({id_[:12]}, pod cart-0, {runtime})",
    )
    resolver = on(host)
    for name in ("web", id_, id_[:12], id_[:4]):
        assert resolver.resolve(containers=(name,)) == expected
    members = resolver.members(expected)
    assert sorted(procfs.comm(pid, root=host.root) or "" for pid in members) == ["sh", "sleep"]


def test_containers_add_up(host: Host) -> None:
    host.load("docker")
    places = [recorded(host, name)[1] for name in ("web-2", "web")]
    targets = on(host).resolve(containers=("web-2", "web", "web-2"))
    assert targets.cgroups == tuple(cgroup(host, f"sys/fs/cgroup/unified{path}") for path in places)
    assert targets.container is None


def test_with_other_targets_beside_it_a_container_is_not_the_only_one(host: Host) -> None:
    host.load("docker")
    assert on(host).resolve(containers=("web",), comms=("sh",)).container is None
    assert on(host).resolve(containers=("web",), everything=True).container is None


def test_a_container_that_is_stopped_is_refused(host: Host) -> None:
    host.load("docker")
    id_ = next(one.container.id for one in Containers(root=host.root, environment=host.environment).all()
               if one.container.name == "old")  # fmt: skip
    assert refusal(host, containers=("old",)) == (
        f"container old ({id_[:12]}, docker) is not running (exited): start it first"
    )


def test_a_container_that_ended_between_two_looks_is_refused(host: Host) -> None:
    host.serve("var/run/docker.sock", lambda _: ok([{"Id": "a" * 64, "Names": ["/web"], "State": "running", "Pid": 7}]))
    assert refusal(host, containers=("web",)) == "container web (aaaaaaaaaaaa, docker) has just ended: start it first"


def test_an_unknown_container_is_refused_with_near_names_and_who_was_asked(host: Host) -> None:
    host.load("docker")
    assert refusal(host, containers=("web-3",)) == (
        "no container is called 'web-3', nor has an ID that begins so; did you mean 'web-2' or 'web'? "
        "(asked docker and containerd; podman: no /run/podman/podman.sock; "
        "podman/cri-o: no /var/lib/containers/storage)"
    )


def test_where_no_runtime_is_found_each_says_where_it_was_looked_for(host: Host) -> None:
    assert refusal(host, containers=("web",)) == (
        "no container is called 'web', nor has an ID that begins so (no container runtime answers; "
        "docker: no /var/run/docker.sock; podman: no /run/podman/podman.sock; "
        "podman/cri-o: no /var/lib/containers/storage; containerd: no /run/containerd)"
    )


def listing(host: Host, *items: tuple[str, str, str, dict[str, str]]) -> None:
    """Docker with these containers: (ID, name, state, labels), the running ones with processes 100, 101, ..."""
    host.write("proc/self/mountinfo", V2_ONLY)
    host.write("proc/self/cgroup", "0::/\n")
    answers = []
    for number, (id_, name, state, labels) in enumerate(items, 100):
        running = state == "running"
        answers.append(
            {"Id": id_, "Names": [f"/{name}"], "State": state, "Labels": labels, "Pid": number if running else 0}
        )
        if running:
            host.process(number, cgroup=f"0::/docker/{id_}\n")
            host.cgroup(f"sys/fs/cgroup/docker/{id_}", number)
    host.serve("var/run/docker.sock", lambda _: ok(answers))


A, AB, B = "a" * 64, "ab" * 32, "b" * 64


def test_the_beginning_of_several_ids_is_refused_with_the_candidates(host: Host) -> None:
    listing(host, (A, "one", "running", {}), (AB, "two", "running", {}), (B, "three", "running", {}))
    assert refusal(host, containers=("a",)) == (
        "'a' may be any of 2 containers: one (aaaaaaaaaaaa, docker) and two (abababababab, docker); name it by its ID"
    )
    assert on(host).resolve(containers=("ab",)).cgroups == (cgroup(host, f"sys/fs/cgroup/docker/{AB}"),)


def test_a_name_goes_before_the_beginning_of_an_id(host: Host) -> None:
    listing(host, (A, "one", "running", {}), (B, "a", "running", {}))
    assert on(host).resolve(containers=("a",)).cgroups == (cgroup(host, f"sys/fs/cgroup/docker/{B}"),)


def test_of_several_with_one_name_the_one_that_runs_is_meant(host: Host) -> None:
    listing(host, (A, "web", "exited", {}), (B, "web", "running", {}))
    assert on(host).resolve(containers=("web",)).cgroups == (cgroup(host, f"sys/fs/cgroup/docker/{B}"),)


def test_a_container_in_several_states_but_running_is_said_to_be_in_that_state(host: Host) -> None:
    listing(host, (A, "web", "restarting", {}))
    assert refusal(host, containers=("web",)) == (
        "container web (aaaaaaaaaaaa, docker) is not running (restarting): start it first"
    )


def test_a_paused_container_can_be_traced(host: Host) -> None:
    listing(host, (A, "web", "running", {}))
    host.root.joinpath("var/run/docker.sock").unlink()
    host.serve("var/run/docker.sock", lambda _: ok([{"Id": A, "Names": ["/web"], "State": "paused", "Pid": 100}]))
    assert on(host).resolve(containers=("web",)).cgroups == (cgroup(host, f"sys/fs/cgroup/docker/{A}"),)


def test_a_container_without_a_cgroup_of_its_own_is_traced_by_its_pid_namespace(host: Host) -> None:
    listing(host, (A, "web", "running", {}))
    for pid, namespace, ppid in ((100, 1, 1), (103, 1, 1), (104, 2, 1), (105, 3, 100)):
        host.process(pid, ppid=ppid, cgroup="0::/\n")
        host.link(f"proc/{pid}/ns/pid", f"pid:[{namespace}]")
    host.link("proc/self/ns/pid", "pid:[2]")
    assert on(host).resolve(containers=("web",)) == TargetSet(
        pids=(100, 105, 103),
        container=Container(id=A, name="web", runtime="docker"),
        description="container web (aaaaaaaaaaaa, docker), which has no cgroup of its own: "
        "what is exec'd into it later is not seen",
    )


def test_a_container_with_nothing_of_its_own_is_traced_by_its_process_tree(host: Host) -> None:
    listing(host, (A, "web", "running", {}))
    for pid, ppid in ((100, 1), (103, 1), (105, 100)):
        host.process(pid, ppid=ppid, cgroup="0::/\n")
        host.link(f"proc/{pid}/ns/pid", "pid:[2]")
    host.link("proc/self/ns/pid", "pid:[2]")
    assert on(host).resolve(containers=("web",)).pids == (100, 105)


# -- pods --------------------------------------------------------------------------------------------------------------


def pod_cgroup(host: Host, namespace: str) -> Cgroup:
    """The cgroup of a recorded pod: the one above its containers'."""
    found = Containers(root=host.root, environment=host.environment).all()
    id_ = next(one.container.id for one in found if one.container.namespace == namespace)
    (directory,) = (host.root / "sys/fs/cgroup/unified").glob(f"*/kubepods/besteffort/pod*/{id_}")
    return cgroup(host, str(directory.parent.relative_to(host.root)))


def test_a_pod_is_traced_by_its_own_cgroup_which_outlives_its_containers(host: Host) -> None:
    host.load("containerd")
    resolver = on(host)
    targets = resolver.resolve(pods=("shop/cart-0",))
    assert targets == TargetSet(
        cgroups=(pod_cgroup(host, "shop"),), description="pod shop/cart-0 (3 containers)"
    )
    assert len(resolver.members(targets)) == 3
    assert resolver.resolve(pods=("shop/cart-0", "test/cart-0")).cgroups == (
        pod_cgroup(host, "shop"), pod_cgroup(host, "test"),
    )  # fmt: skip


def test_a_pods_name_in_several_namespaces_is_refused(host: Host) -> None:
    host.load("containerd")
    assert refusal(host, pods=("cart-0",)) == (
        "pods of 2 namespaces are called 'cart-0': say shop/cart-0 or test/cart-0"
    )


def test_an_unknown_pod_is_refused_with_near_names(host: Host) -> None:
    host.load("containerd")
    silent = (
        "(asked containerd; docker: no /var/run/docker.sock; podman: no /run/podman/podman.sock; "
        "podman/cri-o: no /var/lib/containers/storage)"
    )
    assert refusal(host, pods=("cart-1",)) == f"no pod is called 'cart-1'; did you mean 'cart-0'? {silent}"
    assert refusal(host, pods=("shop/cart",)) == (
        f"no pod is called 'shop/cart'; did you mean 'shop/cart-0' or 'test/cart-0'? {silent}"
    )
    assert refusal(host, pods=("db",)) == f"no pod is called 'db' {silent}"


def test_containers_of_the_same_name_in_two_pods_are_told_apart(host: Host) -> None:
    host.load("containerd")
    text = refusal(host, containers=("web",))
    assert text.startswith("'web' may be any of 2 containers: web (")
    assert "pod shop/cart-0, containerd)" in text
    assert "pod test/cart-0, containerd)" in text


def test_a_pod_of_which_nothing_runs_is_refused(host: Host) -> None:
    labels = {"io.kubernetes.pod.name": "cart-0", "io.kubernetes.pod.namespace": "shop"}
    listing(host, (A, "k8s_web", "exited", labels))
    assert refusal(host, pods=("cart-0",)) == "no container of pod 'cart-0' is running (exited): start it first"


def test_of_a_pod_outside_kubernetes_each_container_that_runs_is_traced(host: Host) -> None:
    labels = {"io.kubernetes.pod.name": "cart-0"}
    listing(host, (A, "one", "running", labels), (AB, "two", "exited", labels), (B, "three", "running", labels))
    assert on(host).resolve(pods=("cart-0",)) == TargetSet(
        cgroups=(cgroup(host, f"sys/fs/cgroup/docker/{A}"), cgroup(host, f"sys/fs/cgroup/docker/{B}")),
        description="pod cart-0 (2 containers)",
    )


# -- looking again -----------------------------------------------------------------------------------------------------


def test_a_second_look_finds_what_was_forked_and_named_meanwhile_and_not_what_has_ended(family: Host) -> None:
    resolver = on(family)
    targets = resolver.resolve(pids=(20, 30), comms=("gunicorn",))
    assert targets.pids == (20, 21, 22, 30)
    family.process(23, "curl", ppid=20)
    family.process(50, "gunicorn")
    family.process(51, "gunicorn", ppid=50)
    for name in ("stat", "status", "comm", "cgroup"):
        (family.root / f"proc/30/{name}").unlink()
    assert resolver.named(targets) == (20, 21, 22, 50, 51, 23)
    alone = on(family).resolve(pids=(20,), comms=("gunicorn",), follow=False)
    assert resolver.named(alone) == (20, 50, 51)


def test_this_process_is_a_target_only_if_its_number_is_given() -> None:
    own = os.getpid()
    resolver = Resolver(Containers(environment={}))
    assert resolver.resolve(pids=(own,), follow=False).pids == (own,)
    assert own not in resolver.resolve(pids=(os.getppid(),)).pids
    assert own not in resolver.resolve(comms=(procfs.comm(own) or "",)).pids
    path = procfs.cgroups("self")[-1].path
    assert own not in resolver.members(resolver.resolve(cgroups=(path,)))


def test_on_this_machine_a_child_is_found_below_its_parent() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        assert child.pid in Resolver(Containers(environment={})).resolve(pids=(os.getpid(),)).pids
        child.kill()


def test_fixtures_say_how_they_were_recorded() -> None:
    for path in sorted((Path(__file__).with_name("fixtures")).iterdir()):
        assert path.read_text().count('"recorded": "python -m tests.unit.targets.record: ') == 1
