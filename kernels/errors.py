"""What goes wrong above a kernel; without torch, so that a command line can name it before it needs any."""


class BackendError(RuntimeError):
    """An op cannot run on the backend that was asked for; one sentence says why."""
