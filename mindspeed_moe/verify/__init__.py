"""Runs `reference` beside the implementation that was chosen, and compares what consumers read when they read it.

Flow: a call of preprocess -> the chosen implementation, then the witness on the same routing map -> at each point where
Megatron reads, a comparison -> when something differs: a dump, an alarm on every rank, an exception.

For launch scripts: `compared` tells how much was compared so far.
"""

from mindspeed_moe.verify.public import Compared, compared

__all__ = ["Compared", "compared"]
