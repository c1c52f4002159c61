"""Calls of the file system that code makes from Python, by name."""

import os

import pytest

CALLS = ("stat", "open", "read", "fstat", "close", "write", "scandir", "listdir", "link", "utime", "unlink", "mkdir")


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls from now on, in order; filled as they are made."""
    calls: list[str] = []
    for name in CALLS:
        function = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *args, f=function, **flags: (calls.append(f.__name__), f(*args, **flags))[1]
        )
    return calls
