"""One line of a telemetry file: parsed, checked, typed. Nothing in a line is believed before it is checked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from mindspeed_moe.telemetry_files import FORMAT

KINDS = ("header", "layer", "load")
MOST_COUNT = 2**48  # of any count: more is damage, and sums over thousands of ranks stay exact in int64
MOST_LAYERS, MOST_EXPERTS, MOST_RANKS = 10_000, 16_384, 2**20
_TEXT = 80  # letters of a version or device that are kept
_RUN = re.compile(r"[0-9A-Za-z]{1,64}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


class MalformedLineError(ValueError):
    """A line is not what the format says; the message is the reason."""


@dataclass(frozen=True)
class Header:
    """Who wrote a segment. started: ISO 8601, or "" when it is unreadable; versions: None where not told.

    run: the word of the launch, "" where not told.
    """

    rank: int
    world_size: int
    started: str
    device: str | None
    mindspeed_moe: str | None
    megatron_core: str | None
    torch: str | None
    run: str = ""


@dataclass(frozen=True)
class Layout:
    """Where the experts of a layer are, seen from one rank of its TPxEP group.

    group: global ranks, EP-major: index ep_rank * tp + tp_rank. numbered: whether `layer` is Megatron's number.
    """

    layer: int
    experts: int
    topk: int
    ep: int
    tp: int
    ep_rank: int
    tp_rank: int
    group: tuple[int, ...]
    numbered: bool = True

    @property
    def local(self) -> int:
        """Experts of one rank, L."""
        return self.experts // self.ep

    @property
    def first(self) -> int:
        """The first expert of this rank."""
        return self.ep_rank * self.local


def parse_line(line: bytes) -> dict[str, Any]:
    """Return the JSON object of a line, with a known kind. Raises MalformedLineError."""
    try:
        record = from_json(line)
    except (ValueError, RecursionError) as error:
        raise MalformedLineError("not one JSON object in UTF-8") from error
    if type(record) is not dict:
        raise MalformedLineError("not a JSON object")
    if record.get("kind") not in KINDS:
        raise MalformedLineError(f"kind: {shown(record.get('kind'))}; allowed: {', '.join(KINDS)}")
    return record


def parse_header(record: dict[str, Any], rank: int) -> Header:
    """Check a header in a file of `rank`. Raises MalformedLineError, for another format too."""
    whole(record, "format", FORMAT, FORMAT)
    if whole(record, "rank", 0, MOST_RANKS) != rank:
        raise MalformedLineError(f"rank: {record['rank']}; expected: {rank}, as in the file's name")
    started, run = record.get("started"), record.get("run")
    return Header(
        rank,
        whole(record, "world_size", rank + 1, MOST_RANKS),
        started if isinstance(started, str) and _TIME.fullmatch(started) else "",
        _text(record.get("device")),
        _text(record.get("mindspeed_moe")),
        _text(record.get("megatron_core")),
        _text(record.get("torch")),
        run if isinstance(run, str) and _RUN.fullmatch(run) else "",
    )


def parse_layout(record: dict[str, Any], rank: int) -> Layout:
    """Check a layer's line in a file of `rank`. Raises MalformedLineError."""
    layer = whole(record, "layer", 0, MOST_LAYERS)
    experts = whole(record, "experts", 1, MOST_EXPERTS)
    topk = whole(record, "topk", 1, experts)
    ep = whole(record, "ep", 1, experts)
    if experts % ep:
        raise MalformedLineError(f"experts: {experts}; expected: a multiple of ep, {ep}")
    tp = whole(record, "tp", 1, MOST_RANKS)
    ep_rank = whole(record, "ep_rank", 0, ep - 1)
    tp_rank = whole(record, "tp_rank", 0, tp - 1)
    group = record.get("group")
    if type(group) is not list or len(group) != ep * tp or set(map(type, group)) != {int}:
        raise MalformedLineError(f"group: {shown(group)}; expected: ep * tp = {ep * tp} ranks")
    if len(set(group)) != len(group) or not 0 <= min(group) <= max(group) < MOST_RANKS:
        raise MalformedLineError("group: expected: different ranks, from 0")
    if group[ep_rank * tp + tp_rank] != rank:
        raise MalformedLineError(f"group: rank {rank} is not at ep_rank {ep_rank}, tp_rank {tp_rank}")
    numbered = record.get("numbered", True)
    if type(numbered) is not bool:
        raise MalformedLineError(f"numbered: {shown(numbered)}; allowed: true, false")
    return Layout(layer, experts, topk, ep, tp, ep_rank, tp_rank, tuple(group), numbered)


def parse_load(record: dict[str, Any], layout: Layout) -> list[int]:
    """Check a load record and return it as one row: step, padded (0 or 1), dropped (-1: unknown), tokens, sent_bytes.

    Raises MalformedLineError. Called a million times: the numbers of a row are checked together.
    """
    tokens, sent, dropped, padded = (record.get(key) for key in ("tokens", "sent_bytes", "dropped", "padded"))
    if type(tokens) is not list or len(tokens) != layout.local:
        raise MalformedLineError(f"tokens: {shown(tokens)}; expected: {layout.local} numbers, the rank's experts")
    if type(sent) is not list or len(sent) != layout.ep:
        raise MalformedLineError(f"sent_bytes: {shown(sent)}; expected: {layout.ep} numbers, the EP peers")
    if type(padded) is not bool:
        raise MalformedLineError(f"padded: {shown(padded)}; allowed: true, false")
    unknown = dropped is None
    row = [record.get("step"), record.get("calls"), 0 if unknown else dropped, *tokens, *sent]
    row.append(record.get("routed"))
    if set(map(type, row)) != {int} or min(row) < 0 or max(row) > MOST_COUNT:
        for key in ("step", "calls", "routed", *(() if unknown else ("dropped",))):
            whole(record, key, 0, MOST_COUNT)
        raise MalformedLineError(f"tokens, sent_bytes: expected: whole numbers from 0 to {MOST_COUNT}")
    row.pop()
    row[1] = int(padded)
    if unknown:
        row[2] = -1
    return row


def whole(record: dict[str, Any], key: str, least: int, most: int) -> int:
    """Return a whole number of a record. Raises MalformedLineError."""
    value = record.get(key)
    if type(value) is not int or not least <= value <= most:
        raise MalformedLineError(f"{key}: {shown(value)}; expected: a whole number from {least} to {most}")
    return value


def shown(value: object) -> str:
    """Return a value for a message: short, and without letters that a terminal would obey."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MOST_COUNT:
        return "a huge number"  # thousands of digits could not even be printed
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    text = ascii(value) if value is not None else "nothing"
    return text if len(text) <= _TEXT else text[:_TEXT] + "..."


def _text(value: object) -> str | None:
    if not isinstance(value, str) or not value.strip():
        return None
    return "".join(letter if letter.isprintable() else "?" for letter in value[:_TEXT])
