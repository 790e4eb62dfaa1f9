"""Which adapter a dispatcher needs: what its generation names. A new contract brings a class and says so in its row."""

from __future__ import annotations

import importlib

from mindspeed_moe.contract.generations import Generation
from mindspeed_moe.preprocess.attributes import Attributes
from mindspeed_moe.preprocess.attributes_inline import SequenceAttributes


def attributes_of(dispatcher: str, generation: Generation) -> Attributes:
    """Return the adapter of a dispatcher's contract; AssertionError when the generation names no such class."""
    if dispatcher == "alltoall_seq":
        return SequenceAttributes(generation)  # the same in every release that has it
    module, _, name = generation.attributes.rpartition(".")
    kind = getattr(importlib.import_module(f"{__package__}.{module}"), name)
    # By name: a module of ours may have been reloaded since, as in a notebook.
    assert Attributes.__name__ in {base.__name__ for base in kind.__mro__}, generation.attributes
    found: Attributes = kind(generation)
    return found
