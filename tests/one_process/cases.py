"""Random whole groups: layouts, routing maps that differ from rank to rank, and the modes."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from one_process.group import Dispatcher, Layout
from oracle.plan import DROP, DROPLESS, MODES, PAD, ROUTER_PADDING, RankPlan, RoutingMap, plan_group

ROUTINGS = ("random", "all on one expert", "few experts", "clustered")


@dataclass(frozen=True)
class Case:
    """One call of preprocess on every rank of a group. maps: one a rank, [T][E] in plain Python."""

    layout: Layout
    topk: int
    mode: str
    factor: float | None
    maps: tuple[RoutingMap, ...]
    transposed: bool  # whether the tensors are laid out column by column, as a transposed view is
    byte: int = 1  # that stands for True, as in a view of somebody's byte mask

    def expected(self) -> list[RankPlan]:
        """The oracle's answer for every rank."""
        one = self.layout
        return plan_group(
            self.maps, ep=one.ep, tp=one.tp, experts=one.experts, topk=self.topk, mode=self.mode, factor=self.factor
        )

    def tensors(self) -> list[torch.Tensor]:
        """The routing maps as tensors [T, E] bool; not to be written to."""
        made = [as_tensor(one, self.layout.experts, self.transposed) for one in self.maps]
        for one in made:
            one.view(torch.uint8).mul_(self.byte)
        return made

    def dispatchers(self) -> list[Dispatcher]:
        """Fresh dispatchers of the case's mode."""
        made = [Dispatcher(self.layout, index, self.topk) for index in range(self.layout.ranks)]
        for dispatcher in made:
            self.configure(dispatcher)
        return made

    def configure(self, dispatcher: Dispatcher) -> None:
        """Switch a dispatcher to the case's mode, as Megatron does with live ones."""
        dispatcher.config.moe_router_topk = self.topk
        dispatcher.config.moe_expert_capacity_factor = self.factor
        for flag in ("moe_router_padding_for_quantization", "moe_router_padding_for_fp8"):
            setattr(dispatcher.config, flag, self.mode == ROUTER_PADDING)
        dispatcher.moe_expert_capacity_factor = self.factor
        dispatcher.drop_and_pad = self.mode == PAD


def as_tensor(routing_map: RoutingMap, experts: int, transposed: bool) -> torch.Tensor:
    """A tensor [T, E] bool; transposed makes it a view that is not contiguous (when T and E allow)."""
    tensor = torch.tensor([list(token) for token in routing_map], dtype=torch.bool, device="cpu").reshape(-1, experts)
    return tensor.t().contiguous().t() if transposed else tensor


def make_map(rng: random.Random, tokens: int, experts: int, topk: int, mode: str, routing: str) -> RoutingMap:
    """A routing map as a router of this mode leaves it; `routing` says how tokens choose their experts."""
    pool = {
        "random": range(experts),
        "all on one expert": range(topk),  # with top-1 literally one; always the same ones
        "few experts": rng.sample(range(experts), min(experts, topk + 1)),
        "clustered": range(start := rng.randrange(experts - topk + 1), min(experts, start + topk + 2)),
    }[routing]
    rows = []
    for _ in range(tokens):
        chosen = set(rng.sample(list(pool), topk))
        rows.append([expert in chosen for expert in range(experts)])
    if mode == DROP:
        return [[one and rng.random() < 0.6 for one in row] for row in rows]
    if mode == ROUTER_PADDING:
        return [[one or rng.random() < 0.2 for one in row] for row in rows]
    return rows


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """TP 1..4, EP 1..8, L 1..8."""
    ep, tp = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    return Layout(ep, tp, ep * draw(st.integers(1, 8)))


@st.composite
def cases(draw: st.DrawFn, modes: tuple[str, ...] = MODES, layout: Layout | None = None) -> Case:
    """0..12 tokens a rank, each rank its own number (but with padding, which needs one); top-k up to min(E, 8)."""
    layout = layout or draw(layouts())
    topk = draw(st.integers(1, min(layout.experts, 8)))
    mode = draw(st.sampled_from(modes))
    most = draw(st.integers(0, 12))
    rng = random.Random(draw(st.integers(0, 2**32 - 1)))
    tokens = [most if mode == PAD else rng.randint(0, most) for _ in range(layout.ranks)]
    routing = draw(st.sampled_from(ROUTINGS))
    maps = tuple(make_map(rng, count, layout.experts, topk, mode, routing) for count in tokens)
    factor = draw(st.sampled_from((0.25, 0.5, 1.0, 1.25, 2.0, 7.3))) if mode in (DROP, PAD) else None
    return Case(layout, topk, mode, factor, maps, draw(st.booleans()))


COUNTED = (DROPLESS, DROP, ROUTER_PADDING)
