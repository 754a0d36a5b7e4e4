"""The text that bcc compiles: the same fragments for every architecture, complete, and compiled for both."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from apitrace.errors import PlatformError
from apitrace.probes import loader

COMPILE = """
import os, sys
from apitrace.probes import loader
machine, switches = sys.argv[1], sys.argv[2:]
directory = loader.source_directory()
os.environ["BCC_KERNEL_SOURCE"] = str(directory / "headers")
import bcc
flags = [f"-DOFF_{s}_{p.replace('.', '_') if s == 'cgroup' else p.rsplit('.', 1)[-1]}=8" for s, p in loader._OFFSETS]
flags += ["-DOFF_FILE_COUNT=8", "-DFILE_COUNT_ONE=1", "-DFOLLOW=1", "-DRING_PAGES=16",
          "-DRING_WAKE_BYTES=4096", "-DCOPY_LIMIT=1048576", "-DCGROUP_HIERARCHIES=1", "-DSTOP=1"]
flags += [f"-D{switch}=1" for switch in switches]
bcc.BPF(text=loader.program_text(directory, machine).encode(), cflags=flags)
print("compiled")
"""


@pytest.mark.live  # bcc makes the maps when it compiles, which needs root
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize(
    "switches",
    [[], ["HOOK_SYS_EXIT"], ["TARGET_ALL"], ["TARGET_CGROUPS", "TARGET_COMMS", "FILTER_PORTS", "FILTER_HOSTS"]],
)
def test_the_programs_compile_for_every_architecture_and_switch(machine: str, switches: list[str]) -> None:
    environment = {**os.environ, "ARCH": {"x86_64": "x86", "aarch64": "arm64"}[machine]}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, machine, *switches],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "compiled\n", done.stderr[-2000:]
    assert "warning" not in done.stderr


def test_an_architecture_without_its_file_is_one_clear_error() -> None:
    with pytest.raises(PlatformError, match="no support for the riscv64 architecture: apitrace knows aarch64, x86_64"):
        loader.program_text(loader.source_directory(), "riscv64")


def test_every_fragment_is_in_the_text_with_its_own_line_numbers() -> None:
    text = loader.program_text(loader.source_directory(), "x86_64")
    for name in ("apitrace.h", "arch_x86_64.h", *loader.FRAGMENTS):
        assert text.count(f'#line 1 "{name}"') == 1
