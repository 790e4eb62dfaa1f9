"""The layer's shape from a Megatron command line. Flags as in megatron-core 0.12.1 and 0.16.1 launches."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mindspeed_moe.errors import ConfigError
from mindspeed_moe.files import read_text

MOST_BYTES = 1 << 20  # of a script
_REQUIRED = ("num_experts", "seq_length", "micro_batch_size")
_ASSIGNMENT = re.compile(r"^\s*(?:export\s+)?([A-Za-z_]\w*)=([^\s\"'()$]+)\s*(?:#.*)?$", re.MULTILINE)
_VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)\}?")


@dataclass(frozen=True)
class MegatronShape:
    """experts, ep, tp (of experts), tokens of one rank, topk; told: how the tokens came about."""

    experts: int
    ep: int
    tp: int
    tokens: int
    topk: int
    told: str


def arguments_of_file(path: Path) -> list[str]:
    """Return the words of a launch script or a list of arguments; `NAME=value` lines stand in for $NAME.

    Quotes, brackets and comments fall away, so that arguments kept in a shell variable are found too. Nothing is run.
    Raises ConfigError when the file cannot be read.
    """
    try:
        text = read_text(path, MOST_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--megatron-args: {path}: cannot be read: {error}") from error
    values = dict(_ASSIGNMENT.findall(text))
    text = re.sub(r"(^|\s)#.*", r"\1", text)
    text = _VARIABLE.sub(lambda found: values.get(found[1], found[0]), text)
    return re.sub(r"[\"'()\\]", " ", text).replace("=", " ").split()


def shape_of_arguments(arguments: Sequence[str]) -> MegatronShape:
    """Read the flags that decide the shape; others are passed over, and of a repeated one the last counts.

    Raises ConfigError for a flag that is missing or wrong, and for layers that have nothing to tune.
    """
    given = _parse(arguments)
    missing = [f"--{name.replace('_', '-')}" for name in _REQUIRED if getattr(given, name) is None]
    if missing:
        raise ConfigError(f"Megatron's arguments: {', '.join(missing)} missing; needed for the layer's shape")
    if given.moe_token_dispatcher_type not in (None, "alltoall"):
        raise ConfigError(
            f"Megatron's arguments: --moe-token-dispatcher-type: {given.moe_token_dispatcher_type!r} is not what "
            f"mindspeed-moe replaces; allowed: alltoall"
        )
    if given.moe_pad_expert_input_to_capacity:
        raise ConfigError(
            "Megatron's arguments: --moe-pad-expert-input-to-capacity: nothing is counted or exchanged then, so there "
            "is nothing to tune"
        )
    tensor = given.tensor_model_parallel_size
    parts = given.context_parallel_size * (tensor if given.sequence_parallel else 1)
    total = given.seq_length * given.micro_batch_size
    told = f"seq-length {given.seq_length} x micro-batch-size {given.micro_batch_size}"
    if given.context_parallel_size > 1:
        told += f" / context-parallel-size {given.context_parallel_size}"
    if given.sequence_parallel and tensor > 1:
        told += f" / tensor-model-parallel-size {tensor} (sequence parallel)"
    if given.seq_length % parts or min(total, parts) < 1:
        raise ConfigError(f"Megatron's arguments: T = {told}: {given.seq_length} does not divide by {parts}")
    return MegatronShape(
        experts=given.num_experts,
        ep=given.expert_model_parallel_size,
        # Megatron's default: experts are sharded like the dense part.
        tp=given.expert_tensor_parallel_size or tensor,
        tokens=total // parts,
        topk=given.moe_router_topk,
        told=f"T = {told} = {total // parts}",
    )


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False, exit_on_error=False)
    for name, default in (
        ("num-experts", None),
        ("seq-length", None),
        ("micro-batch-size", None),
        ("moe-router-topk", 2),
        ("expert-model-parallel-size", 1),
        ("tensor-model-parallel-size", 1),
        ("expert-tensor-parallel-size", None),
        ("context-parallel-size", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--sequence-parallel", action="store_true")
    parser.add_argument("--moe-token-dispatcher-type")
    parser.add_argument("--moe-pad-expert-input-to-capacity", action="store_true")
    try:
        given, _ = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ConfigError(f"Megatron's arguments: {error}") from error
    return given
