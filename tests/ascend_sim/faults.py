"""Switches faults on and off in the running process.

A specification is "NAME=VALUE;NAME=VALUE", as in ASCEND_SIM_FAULT; README.md lists the names. Counting
("at the n-th ...") begins when the specification is set.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.ascend_sim import library


def set_faults(specification: str) -> None:
    """Puts `specification` in force instead of what was; ValueError says what is wrong with it."""
    if error := library.text(library.running(), "ascend_sim_set_faults", specification.encode()):
        raise ValueError(error)


def clear_faults() -> None:
    """Switches all faults off."""
    set_faults("")


def faults_in_force() -> str:
    """The specification that is in force, "" for none."""
    return library.text(library.running(), "ascend_sim_faults")


@contextmanager
def faults(specification: str) -> Iterator[None]:
    """`specification` is in force within the block, then what was in force before (its counts begin anew)."""
    before = faults_in_force()
    set_faults(specification)
    try:
        yield
    finally:
        set_faults(before)
