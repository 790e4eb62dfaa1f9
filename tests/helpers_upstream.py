"""A small module to patch: functions, methods of every kind, an alias, all in a namespace of its own."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType

UPSTREAM = "stub_upstream"
USER = "stub_upstream_user"

_SOURCE = """
import functools

LIMIT = 3


def scale(values, factor=2):
    return [value * factor for value in values]


def decorate(function):
    @functools.wraps(function)
    def decorator(*args, **kwargs):
        return function(*args, **kwargs)
    return decorator


@decorate
def decorated(values):
    return values


class Base:
    def inherited(self, values):
        return ("base", values)


class Worker(Base):
    class Inner:
        def deep(self):
            return "deep"

    def run(self, values, factor=2):
        return ("run", scale(values, factor))

    @classmethod
    def make(cls, size):
        return (cls, size)

    @staticmethod
    def check(value):
        return ("check", value)
"""


@contextlib.contextmanager
def make_upstream() -> Iterator[ModuleType]:
    """Put the module, and a user that did `from stub_upstream import scale`, into sys.modules for a while."""
    module, user = ModuleType(UPSTREAM), ModuleType(USER)
    sys.modules[UPSTREAM], sys.modules[USER] = module, user
    try:
        exec(_SOURCE, vars(module))
        exec(f"from {UPSTREAM} import scale\n\ndef twice(values):\n    return scale(scale(values))\n", vars(user))
        yield module
    finally:
        del sys.modules[UPSTREAM], sys.modules[USER]
