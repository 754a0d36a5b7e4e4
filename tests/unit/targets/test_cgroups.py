"""cgroups: on the recorded hybrid host, and on made-up ones of the kinds that cannot be recorded there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from apitrace.errors import TargetError
from apitrace.probes import procfs
from apitrace.targets import cgroups
from apitrace.targets.target import Cgroup
from tests.unit.targets.recorded import V2_ONLY, Host

ID = "3f2a9c01d2aa" + "0" * 52
CONTROLLERS = ["cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd"]


def found(path: Path, hierarchy: int) -> Cgroup:
    return Cgroup(str(path), hierarchy, path.stat().st_ino)


@pytest.fixture
def docker(host: Host) -> tuple[int, str, str]:
    """The recorded container with two processes: the first of them, its ID, its path."""
    host.load("docker")
    joined = next(pid for pid in procfs.pids(root=host.root) if procfs.comm(pid, root=host.root) == "sh")
    path = procfs.cgroups(joined, root=host.root)[-1].path
    return joined, path.rpartition("/")[2], path


def test_a_container_is_found_in_v2_if_it_has_its_own_cgroup_there(host: Host, docker: tuple[int, str, str]) -> None:
    pid, id_, path = docker
    assert cgroups.of_container(pid, id_, root=host.root) == found(host.root / f"sys/fs/cgroup/unified{path}", 0)


def test_a_container_that_v2_does_not_know_is_found_in_pids(host: Host, docker: tuple[int, str, str]) -> None:
    pid, id_, path = docker
    file = host.root / f"proc/{pid}/cgroup"
    file.write_text(file.read_text().replace(f"0::{path}", "0::/system.slice/containerd.service"))
    assert cgroups.of_container(pid, id_, root=host.root) == found(host.root / f"sys/fs/cgroup/pids{path}", 8)


def test_a_container_without_a_cgroup_of_its_own_has_none(host: Host) -> None:
    host.load("docker")
    host.process(77, cgroup="8:pids:/\n0::/user.slice\n")
    assert cgroups.of_container(77, ID, root=host.root) is None
    assert cgroups.of_container(78, ID, root=host.root) is None  # there is no such process


@pytest.mark.parametrize(
    ("path", "own"),
    [
        (f"/system.slice/docker-{ID}.scope", f"/system.slice/docker-{ID}.scope"),
        (f"/machine.slice/libpod-{ID}.scope/container", f"/machine.slice/libpod-{ID}.scope"),  # crun
        (f"/system.slice/web.service/libpod-payload-{ID}", f"/system.slice/web.service/libpod-payload-{ID}"),  # quadlet
        (f"/docker/{ID}/init.scope", f"/docker/{ID}"),  # systemd in a container
        (f"/docker/{'a' * 64}/docker/{ID}", f"/docker/{'a' * 64}/docker/{ID}"),  # Docker in Docker
        (
            f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podab.slice/cri-containerd-{ID}.scope",
            f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podab.slice/cri-containerd-{ID}.scope",
        ),
    ],
)
def test_the_cgroup_that_bears_the_id_is_the_containers(host: Host, path: str, own: str) -> None:
    host.write("proc/self/mountinfo", V2_ONLY)
    host.write("proc/self/cgroup", "0::/\n")
    host.process(10, cgroup=f"0::{path}\n")
    host.cgroup(f"sys/fs/cgroup{own}")
    host.cgroup(f"sys/fs/cgroup{path}", 10)
    assert cgroups.of_container(10, ID, root=host.root) == found(host.root / f"sys/fs/cgroup{own}", 0)


def test_an_id_that_only_begins_another_name_is_not_borne(host: Host) -> None:
    host.write("proc/self/mountinfo", V2_ONLY)
    host.write("proc/self/cgroup", "0::/\n")
    for pid, path in ((10, "/system.slice/webserver.service"), (11, "/default/web")):
        host.process(pid, cgroup=f"0::{path}\n")
        host.cgroup(f"sys/fs/cgroup{path}", pid)
    assert cgroups.of_container(10, "web", root=host.root) is None
    assert cgroups.of_container(11, "web", root=host.root) == found(host.root / "sys/fs/cgroup/default/web", 0)


@pytest.mark.parametrize("name", ["unified", *CONTROLLERS])
def test_a_directory_names_a_cgroup_of_its_hierarchy(host: Host, docker: tuple[int, str, str], name: str) -> None:
    directory = host.root / f"sys/fs/cgroup/{name}{docker[2]}"
    numbers = {place.controllers: place.hierarchy for place in procfs.cgroups("self", root=host.root)}
    number = numbers.get((name,), numbers.get((f"name={name}",), 0))
    assert cgroups.resolve(str(directory), root=host.root) == found(directory, number)


def test_a_path_as_in_proc_names_the_v2_cgroup_if_there_are_several(host: Host, docker: tuple[int, str, str]) -> None:
    path = docker[2]
    expected = found(host.root / f"sys/fs/cgroup/unified{path}", 0)
    assert cgroups.resolve(path, root=host.root) == expected
    assert cgroups.resolve(path[1:], root=host.root) == expected  # as ps prints it behind "0::/"
    assert cgroups.resolve(f"/{path}/", root=host.root) == expected
    assert cgroups.resolve(f"{path}/../{docker[1]}", root=host.root) == expected


def test_a_path_names_the_hierarchy_that_has_processes_there(host: Host) -> None:
    host.load("docker")
    host.cgroup("sys/fs/cgroup/unified/batch")
    host.cgroup("sys/fs/cgroup/memory/batch/inner", 7)
    host.cgroup("sys/fs/cgroup/memory/batch")
    assert cgroups.resolve("/batch", root=host.root) == found(host.root / "sys/fs/cgroup/memory/batch", 4)
    (host.root / "sys/fs/cgroup/memory/batch/inner/cgroup.procs").write_text("")
    assert cgroups.resolve("/batch", root=host.root) == found(host.root / "sys/fs/cgroup/unified/batch", 0)


def test_a_link_to_a_cgroup_is_followed(host: Host, docker: tuple[int, str, str], tmp_path: Path) -> None:
    directory = host.root / f"sys/fs/cgroup/pids{docker[2]}"
    (tmp_path / "link").symlink_to(directory)
    assert cgroups.resolve(str(tmp_path / "link"), root=host.root) == found(directory, 8)


@pytest.mark.parametrize(
    ("path", "problem"),
    [("/system.slice/none.service", "is no cgroup"), ("/usr", "is no cgroup, though it exists")],
)
def test_what_is_no_cgroup_is_said_to_be_none(host: Host, path: str, problem: str) -> None:
    host.load("docker")
    with pytest.raises(TargetError) as error:
        cgroups.resolve(path, root=host.root)
    assert str(error.value) == (
        f"{path!r} {problem}: name one below {host.root}/sys/fs/cgroup, or as /proc/PID/cgroup does"
    )


def test_an_empty_path_is_not_the_root(host: Host) -> None:
    host.load("docker")
    host.cgroup("sys/fs/cgroup/unified", 1)
    with pytest.raises(TargetError) as error:
        cgroups.resolve("", root=host.root)
    assert str(error.value) == "the cgroup's path is empty: name one as /proc/PID/cgroup does"
    assert cgroups.resolve("/", root=host.root) == found(host.root / "sys/fs/cgroup/unified", 0)


def test_a_host_without_cgroups_says_so(host: Host) -> None:
    with pytest.raises(TargetError) as error:
        cgroups.resolve("/x", root=host.root)
    assert str(error.value) == "cannot trace cgroup '/x': no cgroup hierarchy is mounted; mount one at /sys/fs/cgroup"


def test_members_are_the_processes_of_the_whole_tree(host: Host, docker: tuple[int, str, str]) -> None:
    top = cgroups.resolve(docker[2].rpartition("/")[0], root=host.root)
    assert cgroups.members((top,), root=host.root) == tuple(procfs.pids(root=host.root))
    own = cgroups.resolve(docker[2], root=host.root)
    assert cgroups.members((own, own), root=host.root) == tuple(
        pid for pid in procfs.pids(root=host.root) if procfs.cgroups(pid, root=host.root)[-1].path == docker[2]
    )


def test_a_process_that_cannot_be_seen_from_here_is_no_member(host: Host) -> None:
    directory = host.cgroup("sys/fs/cgroup/x", 0, 5)
    assert cgroups.members((found(directory, 0),), root=host.root) == (5,)


def test_a_cgroup_that_is_gone_has_no_members(host: Host) -> None:
    assert cgroups.members((Cgroup(str(host.root / "gone"), 0, 1),), root=host.root) == ()


@pytest.mark.parametrize(
    ("parent", "is_pods"),
    [
        ("kubepods/besteffort/podaaaa2b4a-f398-41c0-928b-049e1cc4ec40", True),
        ("kubepods.slice/kubepods-besteffort-podaaaa2b4a_f398_41c0_928b_049e1cc4ec40.slice", True),
        ("kubepods.slice/kubepods-podaaaa2b4af39841c0928b049e1cc4ec40.slice", True),  # static, guaranteed
        ("docker", False),
        ("machine.slice", False),
        ("podman/aaaa2b4a-f398-41c0-928b-049e1cc4ec40", False),
    ],
)
def test_the_cgroup_around_a_pods_container_is_the_pods(host: Host, parent: str, is_pods: bool) -> None:
    inner = host.cgroup(f"sys/fs/cgroup/{parent}/cri-containerd-{ID}.scope", 9)
    own = found(inner, 0)
    assert cgroups.of_pod(own) == (found(inner.parent, 0) if is_pods else own)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make cgroups")
def test_threads_that_are_alone_in_a_threaded_cgroup_count_as_their_process() -> None:
    v2 = next((one for one in procfs.hierarchies() if not one.controllers), None)
    if v2 is None:
        pytest.skip("cgroup v2 is not mounted")
    domain = Path(v2.directory) / "apitrace-threaded"
    threaded = domain / "inner"
    threaded.mkdir(parents=True)
    home = v2.directory_of(procfs.cgroups("self")[-1].path)
    try:
        (threaded / "cgroup.type").write_text("threaded")
        (domain / "cgroup.procs").write_text(str(os.getpid()))
        (threaded / "cgroup.threads").write_text(str(os.getpid()))
        assert cgroups.members((found(threaded, 0),)) == (os.getpid(),)
        assert cgroups.members((found(domain, 0),)) == (os.getpid(),)
    finally:
        (Path(home or v2.directory) / "cgroup.procs").write_text(str(os.getpid()))
        threaded.rmdir()
        domain.rmdir()
