"""Data goes one way through the package, and so do imports: the pipeline of the design, as a table."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "apitrace"

VALUES = {"errors", "exchange", "options", "targets.target"}
"""What every stage may speak of. They import nothing of the package but each other."""

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "exchange": set(),
    "options": set(),
    "targets.target": {"exchange"},
    "probes.events": VALUES,
    "probes": VALUES | {"probes"},
    "targets": VALUES | {"targets", "probes.procfs"},
    "files": VALUES | {"files", "probes.events"},
    "files.proto": VALUES | {"protocols.protobuf", "protocols.decoder"},
    "stats": VALUES | {"probes.events"},
    "streams": VALUES | {"probes.events", "protocols"},
    "sessions": VALUES | {"probes.events", "protocols"},
    "endings": {"probes.events", "streams"},
    "connection": VALUES | {"endings", "probes.events", "protocols", "sessions", "stats", "streams"},
    "protocols": VALUES | {"protocols"},
    "assemble": VALUES | {"connection", "protocols", "stats"},
    "redact": VALUES,
    "sinks": VALUES | {"sinks", "files", "probes.events"},
    "demo": set(),
    "pipeline": VALUES | {"probes.events", "connection", "assemble", "redact", "sinks", "stats"},
    "listing": VALUES | {"probes", "sinks.text"},
    "doctor": VALUES | {"listing", "probes", "sinks.text"},
    "cli": {"doctor", "listing", "demo", "files", "pipeline", "probes", "redact", "sinks", "stats", "targets", *VALUES},
    "__main__": {"cli"},
    "": set(),
}
"""Module, or package for all its modules that have no entry of their own: what of ours it may import."""

ONLY_IN: dict[str, set[str]] = {
    "bcc": {"probes.loader"},
    "click": {"cli"},
    "dpkt": {"files"},
    "google": {"protocols.protobuf"},
    "rich": {"sinks"},
    "logging": set(),
}
"""Modules of others that are the affair of one of ours."""

NO_IO = {"io", "os", "pathlib", "select", "socket", "subprocess", "tempfile", "threading", "time"}
"""What a stage without I/O and without a clock has no use for."""

SANS_IO = {"protocols", "assemble"}


def entry(module: str, table: set[str]) -> str | None:
    """Return the name in the table that covers this module: its own, or the nearest package's."""
    while module not in table:
        if "." not in module:
            return None
        module = module.rpartition(".")[0]
    return module


def modules() -> dict[str, Path]:
    names = {path: path.relative_to(PACKAGE).with_suffix("").parts for path in PACKAGE.rglob("*.py")}
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for path, parts in names.items()}


def imports(path: Path) -> set[str]:
    """Return the full names of the modules that this file imports, at any depth of its code."""
    known = modules()
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = {name for name in inner if name.removeprefix("apitrace.") in known}
            found |= submodules if len(submodules) == len(inner) else {node.module, *submodules}
    return found


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_imports_only_what_comes_before_it_in_the_pipeline(module: str) -> None:
    own = entry(module, set(MAY_IMPORT))
    assert own is not None, f"{module} has no place in the pipeline: give it one in MAY_IMPORT"
    wrong = set()
    for name in imports(modules()[module]):
        if name.split(".")[0] == "apitrace":
            inner = name.removeprefix("apitrace").removeprefix(".")
            if inner and entry(inner, MAY_IMPORT[own]) is None:
                wrong.add(name)
        else:
            top = name.split(".")[0]
            if top in ONLY_IN and entry(module, ONLY_IN[top]) is None:
                wrong.add(name)
            if top in NO_IO and entry(module, SANS_IO) is not None:
                wrong.add(name)
    assert wrong == set()


def test_the_table_names_only_modules_that_exist() -> None:
    known = set(modules())
    assert {name for name in MAY_IMPORT if name not in known} == set()
