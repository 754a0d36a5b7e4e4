"""`-- COMMAND`: a child that waits until the probes are in place, then becomes the command.

It runs as the user who called sudo, with that user's groups and home, and with the signal dispositions that a shell
would give it. `start` returns at once; the command's first instruction comes after `release`.
"""

from __future__ import annotations

import errno
import os
import pwd
import signal
import sys
from dataclasses import dataclass, field

from apitrace.errors import ApitraceError


class CommandError(ApitraceError):
    """The command cannot be executed; exit statuses as a shell's and env(1)'s."""

    def __init__(self, name: str, error: int) -> None:
        super().__init__(f"cannot run {name!r}: {os.strerror(error)}")
        self.exit_status = 127 if error == errno.ENOENT else 126


@dataclass(slots=True)
class Command:
    """A command held before its exec."""

    arguments: tuple[str, ...]
    pid: int = 0
    _go: int = -1
    _failure: int = -1
    status: int | None = field(default=None)
    """Exit status once it has ended, 128 + signal number if a signal ended it."""

    def start(self) -> None:
        """Fork the child that waits."""
        go_read, self._go = os.pipe()
        self._failure, failure_write = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(go_read)
            os.close(failure_write)
            return
        try:
            os.close(self._go)
            os.close(self._failure)
            if os.read(go_read, 1) == b"":  # apitrace failed before the probes were in place
                os._exit(125)
            _become_caller()
            for name in (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                signal.signal(name, signal.SIG_DFL)
            os.execvp(self.arguments[0], self.arguments)
        except OSError as error:
            os.write(failure_write, str(error.errno or errno.EINVAL).encode())
        finally:
            os._exit(125)

    def release(self) -> None:
        """Let it exec. Raises CommandError if that fails."""
        os.write(self._go, b"!")
        os.close(self._go)
        self._go = -1
        said = os.read(self._failure, 16)  # end of file at exec: the descriptor is close-on-exec
        os.close(self._failure)
        if said:
            os.waitpid(self.pid, 0)
            raise CommandError(self.arguments[0], int(said))

    def cancel(self) -> None:
        """End the waiting child, if it still waits: the probes could not be placed."""
        if self._go >= 0:
            os.close(self._go)
            self._go = -1
            os.waitpid(self.pid, 0)

    def interrupt(self, number: int) -> None:
        """Pass on the signal that ended the capture. A terminal has sent its Ctrl-C to the command already."""
        if not self.ended() and not (number == signal.SIGINT and sys.stdin.isatty()):
            os.kill(self.pid, number)

    def ended(self) -> bool:
        """Return whether it has ended."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._set(status)
        return self.status is not None

    def wait(self) -> int:
        """Wait until it has ended; return its exit status."""
        while self.status is None:
            try:
                self._set(os.waitpid(self.pid, 0)[1])
            except InterruptedError:
                continue
        return self.status

    def _set(self, status: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        self.status = 128 - code if code < 0 else code


def _become_caller() -> None:
    """Be the user who called sudo, if one did (SUDO_UID, SUDO_GID: sudo(8))."""
    uid, gid = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    if os.geteuid() != 0 or not uid.isdigit() or not gid.isdigit() or uid == "0":
        return
    try:
        user = pwd.getpwuid(int(uid))
    except KeyError:
        os.setgroups([])
    else:
        os.initgroups(user.pw_name, int(gid))
        os.environ.update(HOME=user.pw_dir, USER=user.pw_name, LOGNAME=user.pw_name)
    os.setgid(int(gid))
    os.setuid(int(uid))
