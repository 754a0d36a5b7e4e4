"""Reads what --proto names: .proto sources, which protoc compiles, and descriptor sets.

protoc is that of the grpcio-tools package if it is there, else the one in PATH. The files that a source imports are
looked for beside it, in the working directory, and in the directories of the other files given. Raises UsageError.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from importlib import resources, util
from pathlib import Path
from typing import TYPE_CHECKING

from apitrace.errors import UsageError
from apitrace.protocols.decoder import DecodeError
from apitrace.protocols.protobuf import Schema

if TYPE_CHECKING:
    from collections.abc import Sequence

_SIZE_LIMIT = 64 << 20
"""Bytes of a file: all APIs of Google together have a descriptor set of 20 MB."""

_ERROR = re.compile(r"(?!.*: warning: )\S.*\.proto:")
"""A line of protoc's about a file; there may be others, of the libraries in it."""

_PROTOC_SECONDS = 60
"""A compiler that takes longer hangs: thousands of files take seconds."""


def load(paths: Sequence[str]) -> Schema:
    """Return what these files say of messages."""
    if util.find_spec("google") is None or util.find_spec("google.protobuf") is None:
        message = "--proto needs the protobuf library: pip install 'apitrace[proto]', or the package python3-protobuf"
        raise UsageError(message)
    sets = [_compiled(path, paths) if path.endswith(".proto") else _read(path) for path in paths]
    try:
        return Schema(sets)
    except DecodeError as error:
        message = f"--proto {' '.join(paths)}: {error}"
        raise UsageError(message) from error


def _read(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            raw = file.read(_SIZE_LIMIT + 1)
    except OSError as error:
        message = f"--proto {path}: {error.strerror}"
        raise UsageError(message) from error
    if not raw or len(raw) > _SIZE_LIMIT:
        message = f"--proto {path}: neither a .proto file (by its suffix) nor a descriptor set"
        raise UsageError(message)
    return raw


def _compiled(path: str, others: Sequence[str]) -> bytes:
    """Return the descriptor set of a source and of all that it imports."""
    _read(path)
    source = Path(path).resolve()
    roots = dict.fromkeys([source.parent, Path.cwd(), *(Path(other).resolve().parent for other in others)])
    with tempfile.TemporaryDirectory(prefix="apitrace-proto-") as directory:
        out = Path(directory) / "set"
        command = [
            *_protoc(), *(f"-I{root}" for root in roots), *_included(), "--include_imports",
            f"--descriptor_set_out={out}", str(source),
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=_PROTOC_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            message = f"--proto {path}: cannot run protoc: {error}"
            raise UsageError(message) from error
        if done.returncode or not out.exists():
            said = next(filter(_ERROR.match, done.stderr.splitlines()), "protoc failed, and did not say why")
            message = f"--proto {path}: {' '.join(said.split())}"
            raise UsageError(message)
        return out.read_bytes()


def _protoc() -> list[str]:
    if util.find_spec("grpc_tools") is not None:
        return [sys.executable, "-m", "grpc_tools.protoc"]
    found = shutil.which("protoc")
    if found is None:
        message = (
            "--proto with a .proto file needs protoc: pip install grpcio-tools, or the package protobuf-compiler; "
            "or give a descriptor set"
        )
        raise UsageError(message)
    return [found]


def _included() -> list[str]:
    """Return where grpcio-tools keeps protobuf's own .proto files; protoc of a distribution knows by itself."""
    if util.find_spec("grpc_tools") is None:
        return []
    return [f"-I{resources.files('grpc_tools') / '_proto'}"]
