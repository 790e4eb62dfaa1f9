"""What is to be run: every layout that fits the world, every mode, every choice of the dispatch table. Pure data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mindspeed_moe.dispatch_table import CHOICES, DISPATCHERS, STOCK, Row, rows_of

DROPLESS, DROP, PAD, ROUTER_PADDING = "dropless", "drop", "drop and pad", "router padding"
MODES = (DROPLESS, DROP, PAD, ROUTER_PADDING)
ALLTOALL, SEQ = DISPATCHERS

BARE, LAYER = "bare collectives", "megatron's dispatcher"
WAYS = (BARE, LAYER)

LOCAL_EXPERTS = (1, 2)  # with one a rank there is no second sort, and no chunk table
_PEERS_ONLY = ("exchange", "exchange_group")  # choices without effect where nothing is exchanged


@dataclass(frozen=True, order=True)
class Layout:
    """EP, TP and L of a group. World ranks are numbered TP first, then EP, then groups of data parallelism."""

    ep: int
    tp: int
    local_experts: int

    @property
    def experts(self) -> int:
        """E."""
        return self.ep * self.local_experts

    @property
    def ranks(self) -> int:
        """EP x TP."""
        return self.ep * self.tp

    @property
    def topk(self) -> int:
        """Experts of a token."""
        return min(2, self.experts)

    def __str__(self) -> str:
        return f"EP {self.ep}, TP {self.tp}, L {self.local_experts}"


@dataclass(frozen=True)
class Contestant:
    """An implementation with its choices, as in a configuration's `preprocess`; empty for stock."""

    implementation: str
    choices: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        told = ", ".join(f"{name} {value}" for name, value in self.choices)
        return f"{self.implementation} ({told})" if told else self.implementation


@dataclass(frozen=True)
class Step:
    """One thing that passes or fails.

    way: BARE or LAYER. load: with a busy device, late ranks and many micro-batches in flight.
    refusal: what the package's error must say where it documents that it refuses; else empty.
    """

    layout: Layout
    dispatcher: str
    mode: str
    contestant: Contestant
    way: str
    load: bool
    refusal: str = ""

    @property
    def row(self) -> str:
        """The line of the report's table that the step counts in."""
        return f"{self.layout}; {self.dispatcher}; {self.mode}"

    def __str__(self) -> str:
        return f"{self.row}; {self.contestant}; {self.way}; {'load' if self.load else 'idle'}"


@dataclass(frozen=True)
class LeftOut:
    """A part of the plan that is not run, and why."""

    what: str
    reason: str


@dataclass(frozen=True)
class Facts:
    """What a plan depends on.

    router_padding: whether the release pads the routing map for quantised experts. misplaces: whether it puts tokens
    back at wrong positions where TP, EP and L are above 1.
    """

    device: str
    generation: str
    world_size: int
    router_padding: bool
    misplaces: bool


def layouts(world_size: int) -> tuple[Layout, ...]:
    """Return every EP x TP that divides the world, each with one expert a rank and with several."""
    sizes = [size for size in range(1, world_size + 1) if world_size % size == 0]
    return tuple(
        Layout(ep, tp, local)
        for ep, tp in itertools.product(sizes, sizes)
        if world_size % (ep * tp) == 0
        for local in LOCAL_EXPERTS
    )


def contestants(rows: Sequence[Row], *, peers: bool) -> tuple[Contestant, ...]:
    """Return stock, and every combination of choices of every row; those without effect are taken once.

    peers: whether the dispatcher exchanges counts with other ranks.
    """
    return (Contestant(STOCK), *(one for row in rows for one in _combinations(row, peers=peers)))


def _combinations(row: Row, *, peers: bool) -> Iterator[Contestant]:
    values = [getattr(row, name)[:1] if name in _PEERS_ONLY and not peers else getattr(row, name) for name in CHOICES]
    for combination in itertools.product(*values):
        yield Contestant(row.implementation, tuple(zip(CHOICES, combination, strict=True)))


def covering(all_of_them: Sequence[Contestant]) -> tuple[Contestant, ...]:
    """Return few contestants in which every pair of values of two choices occurs together, of each implementation."""
    chosen: list[Contestant] = []
    for _, group in itertools.groupby(all_of_them, key=lambda one: one.implementation):
        rest = list(group)
        missing = set().union(*map(_pairs, rest))
        chosen += rest[:1] if not missing else []
        while missing:
            best = max(rest, key=lambda one: len(_pairs(one) & missing))
            chosen.append(best)
            missing -= _pairs(best)
    return tuple(chosen)


def _pairs(one: Contestant) -> set[object]:
    return set(itertools.combinations(one.choices, 2))


def plan_steps(
    facts: Facts, wanted: Callable[[str], bool] = lambda name: True, *, load: bool = True
) -> tuple[tuple[Step, ...], tuple[LeftOut, ...]]:
    """Return the steps in the order of their run, and what is left out of them.

    Every combination of choices runs in every mode; through Megatron's dispatcher in other modes than dropless, and
    under load, so many that every pair of two choices' values occurs.
    wanted: of a step's name. Steps of one EP x TP stand together, in them those of one contestant.
    """
    steps = tuple(step for step in _steps(facts, load=load) if wanted(str(step)))
    return steps, tuple(_left_out(facts))


def _steps(facts: Facts, *, load: bool) -> Iterator[Step]:
    every = layouts(facts.world_size)
    for ep, tp in dict.fromkeys((one.ep, one.tp) for one in every):
        here = [one for one in every if (one.ep, one.tp) == (ep, tp)]
        for dispatcher in DISPATCHERS:
            rows = rows_of(facts.device, dispatcher, facts.generation)
            if not rows:
                continue
            peers = (ep if dispatcher == SEQ else ep * tp) > 1
            all_of_them = contestants(rows, peers=peers)
            allowed = [one for one in all_of_them if not _refusal(one, here[0], dispatcher, DROPLESS)]
            few = set(covering(allowed))
            for contestant in all_of_them:
                for layout, mode in itertools.product(here, MODES):
                    if _impossible(facts, layout, dispatcher, mode) or not _differs(contestant, allowed, mode):
                        continue
                    refusal = _refusal(contestant, layout, dispatcher, mode)
                    for under, way in itertools.product((False, True), WAYS):
                        if under and not (load and contestant in few):
                            continue
                        if way == LAYER and mode != DROPLESS and contestant not in few:
                            continue
                        if way == LAYER and (refusal or _misplaces(facts, layout, dispatcher)):
                            continue
                        yield Step(layout, dispatcher, mode, contestant, way, under, refusal)


def _differs(contestant: Contestant, allowed: Sequence[Contestant], mode: str) -> bool:
    """Whether a mode runs other code with this contestant: with padding nothing is counted, so no choice is read."""
    return mode != PAD or contestant == next(one for one in allowed if one.implementation == contestant.implementation)


def _refusal(contestant: Contestant, layout: Layout, dispatcher: str, mode: str) -> str:
    choices = dict(contestant.choices)
    if choices.get("exchange_group") == "ep" and dispatcher == ALLTOALL and layout.tp > 1 and mode != PAD:
        return "preprocess.exchange_group: 'ep': the EP group"
    return ""


def _impossible(facts: Facts, layout: Layout, dispatcher: str, mode: str) -> str:
    """Return why Megatron itself cannot run a mode; empty where it can."""
    if mode == ROUTER_PADDING and not facts.router_padding:
        return "this release has no router padding"
    if mode == ROUTER_PADDING and dispatcher == SEQ:
        return "alltoall_seq has no router padding"
    if mode == PAD and dispatcher == SEQ and layout.tp > 1 and layout.local_experts > 1:
        return "Megatron's own chunk table has E x TP entries for E chunks, and stock fails"
    return ""


def _misplaces(facts: Facts, layout: Layout, dispatcher: str) -> bool:
    """Whether Megatron puts tokens back at wrong positions: its splits can be tested, its outputs are wrong."""
    return facts.misplaces and dispatcher == ALLTOALL and min(layout.ep, layout.tp, layout.local_experts) > 1


def _left_out(facts: Facts) -> Iterator[LeftOut]:
    for layout, dispatcher in itertools.product(layouts(facts.world_size), DISPATCHERS):
        if not rows_of(facts.device, dispatcher, facts.generation):
            continue
        for mode in MODES:
            reason = _impossible(facts, layout, dispatcher, mode)
            if reason:
                yield LeftOut(f"{layout}; {dispatcher}; {mode}", reason)
        if _misplaces(facts, layout, dispatcher):
            reason = "this release of Megatron puts tokens back at wrong positions there, with stock too"
            yield LeftOut(f"{layout}; {dispatcher}; every mode; {LAYER}", reason)
