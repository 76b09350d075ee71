"""The error that every audio reader raises."""


class AudioError(ValueError):
    """Audio that cannot be listed or read. The message is one line: the file, and what is wrong with it."""

    def __init__(self, name: object, reason: str) -> None:
        super().__init__(str(name), reason)

    def __str__(self) -> str:
        return " ".join(": ".join(self.args).splitlines())


def truncated(name: str, promised: str, held: str) -> AudioError:
    """Return the error for a file with less sound than its header states."""
    return AudioError(name, f"is truncated: header promises {promised}, file holds {held}; fetch it again")


def os_reason(error: OSError) -> str:
    """Return why the system refused to open a file."""
    if isinstance(error, PermissionError):
        return "permission denied; make it readable or leave it out"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return error.strerror or str(error)
