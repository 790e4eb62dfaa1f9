"""The dispatch table: (device, dispatcher, generation) -> implementation. Data; consulted once, at patch time.

`doctor` prints a lookup's reasons, the README's support matrix is generated from the same rows, and a test visits
every cell. Rows of one cell stand in order of preference; the first value of a choice is its `auto`.
"""

from __future__ import annotations

from dataclasses import dataclass

from mindspeed_moe.config import Config
from mindspeed_moe.contract.generations import GENERATIONS, LEGACY_DISPATCHER
from mindspeed_moe.errors import UnsupportedError

DEVICES = ("npu", "cuda", "cpu")
DISPATCHERS = ("alltoall", "alltoall_seq")
STOCK = "stock"


@dataclass(frozen=True)
class Row:
    """One supported implementation in one cell.

    program: the name of its builder in mindspeed_moe.programs.
    counts, exchange, tokens_per_expert: the choices it offers, the default first.
    evidence: how the row is known to be right.
    """

    device: str
    dispatcher: str
    generation: str
    implementation: str
    program: str
    counts: tuple[str, ...]
    exchange: tuple[str, ...]
    tokens_per_expert: tuple[str, ...]
    evidence: str


@dataclass(frozen=True)
class Gap:
    """Why a cell, or an implementation in it, has no row; `*` stands for any."""

    device: str
    dispatcher: str
    generation: str
    reason: str

    def covers(self, device: str, dispatcher: str, generation: str) -> bool:
        """Return whether the gap speaks of this cell."""
        return (
            self.device in ("*", device)
            and self.dispatcher in ("*", dispatcher)
            and self.generation in ("*", generation)
        )


@dataclass(frozen=True)
class Decision:
    """What a lookup chose for one dispatcher, and why every other candidate lost.

    row is None for `stock`. counts, exchange and tokens_per_expert are the chosen values, empty for `stock`.
    """

    device: str
    dispatcher: str
    generation: str
    implementation: str
    row: Row | None
    counts: str
    exchange: str
    tokens_per_expert: str
    reason: str
    rejected: tuple[tuple[str, str], ...]


_TESTED = "tested on every run"
_NOT_MEASURED = "not measured: shares its code with cpu and npu, never run on a GPU"
_HOST = ("host",)
_COVERED = ("hook_stream_wait", "hook_event_wait_graphs")

ROWS = tuple(
    row
    for generation in _COVERED
    for row in (
        Row("cpu", "alltoall", generation, "packed", "packed_on_host",
            ("byte_lanes", "sum"), ("all_to_all", "all_gather"), _HOST, _TESTED),
        Row("cpu", "alltoall", generation, "reference", "reference_on_host",
            ("sum",), ("all_gather",), _HOST, _TESTED),
        Row("cuda", "alltoall", generation, "packed", "packed_on_cuda",
            ("sum",), ("all_to_all", "all_gather"), ("host", "device"), _NOT_MEASURED),
        Row("cuda", "alltoall", generation, "reference", "reference_on_cuda",
            ("sum",), ("all_gather",), ("host", "device"), _NOT_MEASURED),
    )
)  # fmt: skip

_WITHOUT_LEGACY = tuple(one.name for one in GENERATIONS if (LEGACY_DISPATCHER, False) in one.expected)

GAPS = (
    *(Gap("*", "alltoall_seq", name, "Megatron has no such dispatcher in this release") for name in _WITHOUT_LEGACY),
    Gap("*", "alltoall_seq", "*", "not available in this version of mindspeed-moe"),
    Gap("npu", "*", "*", "not available in this version of mindspeed-moe: waits for the simulated Ascend runtime"),
    Gap("*", "*", "*", "not available in this version of mindspeed-moe: this contract has no adapter yet"),
)  # fmt: skip


def rows_of(device: str, dispatcher: str, generation: str) -> tuple[Row, ...]:
    """Return the rows of a cell, in order of preference."""
    return tuple(
        row for row in ROWS if (row.device, row.dispatcher, row.generation) == (device, dispatcher, generation)
    )


def gap_reason(device: str, dispatcher: str, generation: str) -> str:
    """Return why a cell has no rows."""
    return next(gap.reason for gap in GAPS if gap.covers(device, dispatcher, generation))


def lookup(device: str, dispatcher: str, generation: str, config: Config) -> Decision:
    """Choose the implementation for one dispatcher.

    Raises UnsupportedError when the configuration names an implementation, or a choice inside one, that no row
    of the cell offers; `auto` falls back to `stock`, with the reason.
    """
    asked = str(config.get(f"dispatchers.{dispatcher}"))
    rejected: list[tuple[str, str]] = []
    for row in rows_of(device, dispatcher, generation):
        problem = _problem(row, asked, config)
        if problem is None:
            chosen = _choices(row, config)
            reason = "asked for" if asked == row.implementation else "first row that fits"
            later = rows_of(device, dispatcher, generation)
            rejected += [
                (other.implementation, f"{row.implementation} stands before it")
                for other in later[later.index(row) + 1 :]
            ]
            return Decision(
                device, dispatcher, generation, row.implementation, row, *chosen, reason,
                (*rejected, (STOCK, f"{row.implementation} stands before it")),
            )  # fmt: skip
        rejected.append((row.implementation, problem))
    cell = f"device {device}, dispatcher {dispatcher}, generation {generation}"
    if not rejected:
        rejected = [("packed", gap_reason(device, dispatcher, generation))]
        rejected.append(("reference", rejected[0][1]))
    if asked not in ("auto", STOCK) or (asked == "auto" and _asks_for_a_choice(config, dispatcher)):
        offered = [row.implementation for row in rows_of(device, dispatcher, generation)]
        told = "; ".join(f"{name}: {why}" for name, why in rejected)
        raise UnsupportedError(
            f"dispatchers.{dispatcher}: {asked!r} cannot be had for {cell} ({told}); "
            f"allowed: {', '.join(('auto', *offered, STOCK))}"
        )
    reason = "asked for" if asked == STOCK else "no other row fits"
    return Decision(device, dispatcher, generation, STOCK, None, "", "", "", reason, tuple(rejected))


def _problem(row: Row, asked: str, config: Config) -> str | None:
    """Return why a row does not fit the configuration, or None."""
    if asked not in ("auto", row.implementation):
        return f"the configuration asks for {asked}"
    for choice in ("counts", "exchange", "tokens_per_expert"):
        wanted, offered = config.get(f"preprocess.{choice}"), getattr(row, choice)
        if wanted not in ("auto", *offered):
            return f"preprocess.{choice}: {wanted!r} is not offered, only {', '.join(offered)}"
    return None


def _choices(row: Row, config: Config) -> tuple[str, str, str]:
    def choose(choice: str) -> str:
        wanted = str(config.get(f"preprocess.{choice}"))
        return str(getattr(row, choice)[0]) if wanted == "auto" else wanted

    return choose("counts"), choose("exchange"), choose("tokens_per_expert")


def _asks_for_a_choice(config: Config, dispatcher: str) -> bool:
    """Whether a choice inside an implementation is set: then falling back to stock would ignore it."""
    return dispatcher == "alltoall" and any(
        config.get(f"preprocess.{choice}") != "auto" for choice in ("counts", "exchange", "tokens_per_expert")
    )
