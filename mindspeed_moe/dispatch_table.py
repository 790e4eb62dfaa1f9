"""The dispatch table: (device, dispatcher, generation) -> implementation. Data; consulted once, at patch time.

`doctor` prints a lookup's reasons, the README's support matrix is generated from the same rows, and a test visits
every cell. Rows of one cell stand in order of preference; the first value of a choice is its `auto`.
"""

from __future__ import annotations

from dataclasses import dataclass

from mindspeed_moe.config import Config
from mindspeed_moe.contract.generations import GENERATIONS, HOOK, WITH_LEGACY, Generation
from mindspeed_moe.errors import UnsupportedError

DEVICES = ("npu", "cuda", "cpu")
DISPATCHERS = ("alltoall", "alltoall_seq")
IMPLEMENTATIONS = ("packed", "reference")  # in order of preference; stock comes last, and always can be had
REFERENCE = "reference"
STOCK = "stock"
CHOICES = ("counts", "exchange", "exchange_group", "stream", "tokens_per_expert")
AUTO = "auto"
# Choices whose `auto` is settled for each dispatcher, when its layout and its experts are known.
SETTLED_LATER = ("exchange_group", "tokens_per_expert")


@dataclass(frozen=True)
class Claim:
    """How a row is known to be right: in words, with the releases that the suite is run with, which tests hold it to.

    ran: what else there is to say; empty where nothing but the suite speaks for the row.
    """

    ran: str
    every_run: tuple[str, ...] = ()
    on_demand: tuple[str, ...] = ()
    by_hand: tuple[str, ...] = ()

    @property
    def releases(self) -> tuple[str, ...]:
        """The releases that the claim names."""
        return self.every_run + self.on_demand + self.by_hand

    def __str__(self) -> str:
        parts = (
            ("on every run with", self.every_run),
            ("on demand with", self.on_demand),
            ("by hand, from a checkout, with", self.by_hand),
        )
        tested = ", ".join(f"{when} {', '.join(releases)}" for when, releases in parts if releases)
        return "; ".join(part for part in (self.ran, f"tested {tested}" if tested else "") if part)


@dataclass(frozen=True)
class Row:
    """One supported implementation in one cell.

    program: the name of its builder in mindspeed_moe.programs.
    counts, exchange, exchange_group, stream, tokens_per_expert: the choices it offers, the default first.
    claim: how the row is known to be right; `evidence` is the same in words.
    """

    device: str
    dispatcher: str
    generation: str
    implementation: str
    program: str
    counts: tuple[str, ...]
    exchange: tuple[str, ...]
    exchange_group: tuple[str, ...]
    stream: tuple[str, ...]
    tokens_per_expert: tuple[str, ...]
    claim: Claim

    @property
    def evidence(self) -> str:
        """How the row is known to be right."""
        return str(self.claim)


@dataclass(frozen=True)
class Gap:
    """Why a cell has no row; `*` stands for any. absent: Megatron has no such dispatcher to begin with."""

    device: str
    dispatcher: str
    generation: str
    reason: str
    absent: bool = False

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

    row is None for `stock`. counts, exchange, exchange_group, stream and tokens_per_expert are the chosen values,
    empty for `stock`; exchange_group and tokens_per_expert stay `auto` where each dispatcher settles them.
    """

    device: str
    dispatcher: str
    generation: str
    implementation: str
    row: Row | None
    counts: str
    exchange: str
    exchange_group: str
    stream: str
    tokens_per_expert: str
    reason: str
    rejected: tuple[tuple[str, str], ...]


_HOST = ("host",)
_CURRENT = ("current",)
_STREAMS = ("current", "side")
_GROUPS = ("ep", "tp_ep")  # ep where it holds the ranks of tp_ep, that is with TP = 1
_TRIED_ON_GPU = ("alltoall", "hook_event_wait_graphs")
_SIMULATED = "simulated: the real torch_npu on stand-in CANN libraries, never an NPU"
_ON_GPU = (
    "tried on one H100 with torch 2.11.0 and megatron-core 0.16.1, over a group of one rank, never on several GPUs"
)


def _on_cpu(generation: Generation) -> Claim:
    return Claim("", generation.every_run, generation.on_demand, generation.by_hand)


def _on_npu(generation: Generation) -> Claim:
    return Claim(_SIMULATED, generation.every_run, generation.on_demand, generation.by_hand)


def _on_cuda(dispatcher: str, generation: Generation) -> Claim:
    if (dispatcher, generation.name) == _TRIED_ON_GPU:
        return Claim(_ON_GPU)
    if dispatcher == _TRIED_ON_GPU[0] and generation.adapter == HOOK:
        return Claim("not measured: shares its code with 0.16's, which ran on a GPU")
    return Claim("not measured: only what it has in common with 0.16's ran on a GPU")


def _rows(dispatcher: str, generation: Generation) -> tuple[Row, ...]:
    name = generation.name
    on_npu, on_cuda, on_cpu = _on_npu(generation), _on_cuda(dispatcher, generation), _on_cpu(generation)
    return (
        Row("npu", dispatcher, name, "packed", "packed_on_accelerator",
            ("sum", "matmul"), ("all_to_all", "all_gather"), (*_GROUPS, "dedicated"), _STREAMS,
            ("device", "host"), on_npu),
        Row("npu", dispatcher, name, "reference", "reference_on_accelerator",
            ("sum",), ("all_gather",), ("tp_ep",), _CURRENT, ("device", "host"), on_npu),
        Row("cpu", dispatcher, name, "packed", "packed_on_host",
            ("byte_lanes", "sum"), ("all_to_all", "all_gather"), _GROUPS, _CURRENT, _HOST, on_cpu),
        Row("cpu", dispatcher, name, "reference", "reference_on_host",
            ("sum",), ("all_gather",), ("tp_ep",), _CURRENT, _HOST, on_cpu),
        Row("cuda", dispatcher, name, "packed", "packed_on_accelerator",
            ("sum", "matmul"), ("all_gather", "all_to_all"), _GROUPS, _STREAMS,
            ("host", "device"), on_cuda),
        Row("cuda", dispatcher, name, "reference", "reference_on_accelerator",
            ("sum",), ("all_gather",), ("tp_ep",), _CURRENT, ("host", "device"), on_cuda),
    )  # fmt: skip


ROWS = (
    *(row for one in GENERATIONS for row in _rows("alltoall", one)),
    *(row for one in GENERATIONS if one.name in WITH_LEGACY for row in _rows("alltoall_seq", one)),
)

_ABSENT = "Megatron has no such dispatcher in this release"

GAPS = tuple(
    Gap("*", "alltoall_seq", one.name, _ABSENT, absent=True) for one in GENERATIONS if one.name not in WITH_LEGACY
)


@dataclass(frozen=True)
class Offer:
    """What is offered for a layout whose dispatcher is somebody else's class: called by it, not patched in.

    bypassed: what does not reach such a dispatcher. evidence: how the function is known to be right.
    """

    layout: str
    device: str
    function: str
    patched: str
    bypassed: str
    evidence: str


_EXTENDED = "mindspeed_moe.preprocess.extended_async.ExtendedPreprocess"
_OF_EXTENDED = {
    "npu": f"{_SIMULATED}; tested on every run, apart from any dispatcher",
    "cuda": "not measured",
    "cpu": "tested on every run on gloo processes, apart from any dispatcher",
}
OFFERS = tuple(
    Offer(
        layout="tensor extends expert (MindSpeed's --moe-tp-extend-ep)",
        device=device,
        function=_EXTENDED,
        patched="nothing",
        bypassed="the rows of alltoall_seq: MindSpeed's dispatcher overrides preprocess, and runs its own",
        evidence=_OF_EXTENDED[device],
    )
    for device in DEVICES
)


def rows_of(device: str, dispatcher: str, generation: str) -> tuple[Row, ...]:
    """Return the rows of a cell, in order of preference."""
    return tuple(
        row for row in ROWS if (row.device, row.dispatcher, row.generation) == (device, dispatcher, generation)
    )


def gap_of(device: str, dispatcher: str, generation: str) -> Gap:
    """Return why a cell has no rows."""
    return next(gap for gap in GAPS if gap.covers(device, dispatcher, generation))


def lookup(device: str, dispatcher: str, generation: str, config: Config) -> Decision:
    """Choose the implementation for one dispatcher.

    Raises UnsupportedError when the configuration names an implementation, or a choice inside one, that no row
    of the cell offers; `auto` falls back to `stock`, with the reason.
    """
    asked = str(config.get(f"dispatchers.{dispatcher}"))
    rows = rows_of(device, dispatcher, generation)
    problems = {row.implementation: _problem(row, asked, config) for row in rows}
    if not rows:
        gap = gap_of(device, dispatcher, generation)
        problems = {} if gap.absent else dict.fromkeys(IMPLEMENTATIONS, gap.reason)
    row = next((row for row in rows if problems[row.implementation] is None), None)
    if row is None and asked != STOCK and (rows or asked != "auto" or _choice_would_be_ignored(dispatcher, config)):
        offered = ", ".join(("auto", *(row.implementation for row in rows), STOCK))
        told = "; ".join(f"{name}: {why}" for name, why in problems.items())
        told = told or gap_of(device, dispatcher, generation).reason
        raise UnsupportedError(
            f"dispatchers.{dispatcher}: {asked!r} cannot be had for device {device}, generation {generation} ({told}); "
            f"allowed: {offered}"
        )
    winner = row.implementation if row else STOCK
    lost = {name: why or f"{winner} stands before it" for name, why in problems.items() if name != winner}
    if row:
        lost[STOCK] = f"{winner} stands before it"
    return Decision(
        device=device,
        dispatcher=dispatcher,
        generation=generation,
        implementation=winner,
        row=row,
        **(_choices(row, config) if row else dict.fromkeys(CHOICES, "")),
        reason=_reason(asked, row, device, dispatcher, generation),
        rejected=tuple(lost.items()),
    )


def _reason(asked: str, row: Row | None, device: str, dispatcher: str, generation: str) -> str:
    if asked != "auto":
        return "asked for"
    return "first row that fits" if row else gap_of(device, dispatcher, generation).reason


def _choice_would_be_ignored(dispatcher: str, config: Config) -> bool:
    """Whether falling back to stock would leave a choice of the configuration without effect."""
    return dispatcher == "alltoall" and any(config.get(f"preprocess.{choice}") != "auto" for choice in CHOICES)


def _problem(row: Row, asked: str, config: Config) -> str | None:
    """Return why a row does not fit the configuration, or None."""
    if asked not in ("auto", row.implementation):
        return f"the configuration asks for {asked}"
    for choice in CHOICES:
        wanted, offered = config.get(f"preprocess.{choice}"), getattr(row, choice)
        if wanted not in ("auto", *offered):
            return f"preprocess.{choice}: {wanted!r} is not offered, only {', '.join(offered)}"
    return None


def _choices(row: Row, config: Config) -> dict[str, str]:
    chosen = {}
    for choice in CHOICES:
        wanted, offered = str(config.get(f"preprocess.{choice}")), getattr(row, choice)
        settled_now = wanted == AUTO and (choice not in SETTLED_LATER or len(offered) == 1)
        chosen[choice] = offered[0] if settled_now else wanted
    return chosen
