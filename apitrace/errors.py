"""The errors that end a run, each with the exit status that design and man page promise.

Every message is one line: what is wrong, why, and what to do. `cli.py` prints it after "apitrace: "
and exits with `exit_status`; nothing else in the package calls exit.
"""


class ApitraceError(Exception):
    """A run cannot go on. The message is for the user, on one line."""

    exit_status = 1


class TargetError(ApitraceError):
    """What was to be traced is not there, or is ambiguous."""

    exit_status = 1


class UsageError(ApitraceError):
    """The command line asks for something that makes no sense."""

    exit_status = 2


class PlatformError(ApitraceError):
    """A privilege, a kernel feature or the bcc package is missing."""

    exit_status = 3


class OutputError(ApitraceError):
    """The output could not be written: full disk, no permission."""

    exit_status = 4
