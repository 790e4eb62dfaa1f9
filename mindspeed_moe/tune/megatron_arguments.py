"""The layer's shape from a Megatron command line. Flags as in megatron-core 0.12.1 and 0.16.1 launches."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mindspeed_moe.errors import ConfigError, printable
from mindspeed_moe.files import read_text

MOST_BYTES = 1 << 20  # of a script
_REQUIRED = ("num_experts", "seq_length", "micro_batch_size")
_ELSEWHERE = ("use_checkpoint_args", "yaml_cfg", "mm_model")  # flags behind which sizes stand that no flag tells
_ASSIGNMENT = re.compile(r"""\s*(?:export\s+)?([A-Za-z_]\w*)=(["']?)([\w.,:/@%+-]+)\2\s*""")
_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})")
_COMMENT = re.compile(r"(?:^|(?<=\s))#")
_OF_A_SHELL = re.compile(r"\$\{?\w*|`|[;&|<>(){}\\*?]")
_READS_ON = (
    *("source", ".", "eval", "if", "then", "else", "elif", "fi", "for", "while", "until", "do", "done", "case", "esac"),
)


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
    """Return the words of a list of arguments, or of a script that is one plain command.

    Before the command may stand `NAME=value` lines, which fill in $NAME. A script with anything else of a shell (a
    branch, a second command, a quoted list of flags, a default) is refused: only running it would tell what it gives.
    Nothing is run. Raises ConfigError that names file, line and what was found.
    """
    try:
        text = read_text(path, MOST_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--megatron-args: {path}: cannot be read: {error}") from error
    values: dict[str, str] = {}
    words: list[str] = []
    listed = True  # every line begins with a flag: no script
    for number, line in _lines(text):
        try:
            found = _words_of(line, values)
            if not found:
                continue
            listed = listed and found[0].startswith("-")
            if words and not listed:
                raise _NotPlainError("a second command, or a branch")
        except _NotPlainError as error:
            raise ConfigError(
                f"--megatron-args: {path}:{number}: {error}: a script is read only if it is one plain command, with "
                "nothing but NAME=value lines before it; give the command behind `--` with its variables filled in "
                "(put `echo` before it, run the script, and paste what it prints)"
            ) from None
        words += found
    return words


class _NotPlainError(Exception):
    """A line needs a shell to be read; the message says what is in it."""


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield each line with its number, without comments, joined where a backslash ends it."""
    begun, first = "", 1
    for number, line in enumerate(text.split("\n"), 1):
        first = first if begun else number
        comment = _COMMENT.search(line)
        # Behind a quote it may be none: what is left of it has no end then, and is refused.
        line = line[: comment.start()] if comment else line
        if line.endswith("\\") and not line.endswith("\\\\"):
            begun += line[:-1] + " "
            continue
        yield first, begun + line
        begun = ""
    if begun:
        yield first, begun


def _words_of(line: str, values: dict[str, str]) -> list[str]:
    """Return a line's words; none for an assignment, which goes into `values`. Raises _NotPlainError."""
    if "'" not in line:
        line = _VARIABLE.sub(lambda found: values.get(found[1] or found[2], found[0]), line)
    assigned = _ASSIGNMENT.fullmatch(line)
    if assigned:
        if assigned[1] in values:
            raise _NotPlainError(f"{assigned[1]}: a second value")
        values[assigned[1]] = assigned[3]
        return []
    left = _OF_A_SHELL.search(line)
    if left:
        raise _NotPlainError(f"{left[0]!r}")
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise _NotPlainError(str(error)) from None
    called = next((word for word in words if word in _READS_ON or word.endswith((".sh", "+=", "="))), None)
    if called:
        raise _NotPlainError(f"{called!r}")
    return words


def shape_of_arguments(arguments: Sequence[str]) -> MegatronShape:
    """Read the flags that decide the shape; others are passed over, and of a repeated one the last counts.

    Raises ConfigError for a flag that is missing or wrong, and for layers that have nothing to tune.
    """
    given = _parse(arguments)
    for name in _ELSEWHERE:
        if getattr(given, name) is not None:
            raise ConfigError(
                f"Megatron's arguments: --{name.replace('_', '-')}: the sizes stand elsewhere, and no flag tells them; "
                "give --experts, --ep, --tp, --tokens and --topk instead"
            )
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


def _size(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{printable(text)!r} is not a whole number from 1 to {10**9 - 1}")
    return int(text)


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
        parser.add_argument(f"--{name}", type=_size, default=default)
    parser.add_argument("--sequence-parallel", action="store_true")
    for name in _ELSEWHERE:
        parser.add_argument(f"--{name.replace('_', '-')}", nargs="?", const=True)
    parser.add_argument("--moe-token-dispatcher-type")
    parser.add_argument("--moe-pad-expert-input-to-capacity", action="store_true")
    try:
        given, _ = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ConfigError(f"Megatron's arguments: {error}") from error
    return given
