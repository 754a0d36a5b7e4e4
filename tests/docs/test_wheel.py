"""The wheel has everything in it: the kernel programs and the manual, not Python alone."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from apitrace import __version__

ROOT = Path(__file__).parents[2]


def test_the_wheel_contains_the_package_the_kernel_programs_and_the_manual(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    [wheel] = tmp_path.iterdir()
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "apitrace").rglob("*.py")}
    kernel = {f"apitrace/{path.relative_to(ROOT)}" for path in (ROOT / "bpf").rglob("*") if path.is_file()}
    info = f"apitrace-{__version__}.dist-info"
    others = {f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")}
    others |= {f"apitrace-{__version__}.data/data/share/man/man8/apitrace.8"}
    assert names == package | kernel | others
