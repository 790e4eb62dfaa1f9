"""Which adapter a dispatcher needs, as data: one row a dispatcher and way of waiting."""

from __future__ import annotations

from mindspeed_moe.contract.generations import HOOK, INLINE, Generation
from mindspeed_moe.preprocess.attributes import Attributes
from mindspeed_moe.preprocess.attributes_inline import InlineAttributes, SequenceAttributes

ADAPTERS: dict[tuple[str, str], type[Attributes]] = {
    ("alltoall", HOOK): Attributes,
    ("alltoall", INLINE): InlineAttributes,
    ("alltoall_seq", HOOK): SequenceAttributes,  # it never got a hook
    ("alltoall_seq", INLINE): SequenceAttributes,
}


def attributes_of(dispatcher: str, generation: Generation) -> Attributes:
    """Return the adapter of a dispatcher's contract; KeyError for one that has none."""
    return ADAPTERS[dispatcher, generation.adapter](generation)
