"""The shape of the layer that is measured, and sweeps over shapes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from mindspeed_moe.errors import BenchError
from mindspeed_moe.preprocess.layout import ExpertLayout

MODES = ("dropless", "drop", "pad")
LARGEST = 2**28  # entries of a routing map, or of all ranks' counts
CAPACITY_FACTOR = 1.0  # of the modes drop and pad


@dataclass(frozen=True)
class Shape:
    """One layer: E experts, EP x TP ranks, T tokens a rank, topk experts a token, and what happens to overflow.

    mode: dropless; drop (experts drop tokens beyond their capacity); pad (and are padded up to it).
    Raises BenchError for a shape that no layer can have.
    """

    experts: int
    ep: int
    tp: int
    tokens: int
    topk: int
    mode: str

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise BenchError(f"impossible shape ({self}): {problem}")

    def __str__(self) -> str:
        return f"E={self.experts} EP={self.ep} TP={self.tp} T={self.tokens} top-{self.topk} {self.mode}"

    def _problem(self) -> str | None:
        for name, value in (("E", self.experts), ("EP", self.ep), ("TP", self.tp), ("T", self.tokens)):
            if value < 1:
                return f"{name} must be at least 1"
        if not 1 <= self.topk <= self.experts:
            return f"a token can go to 1 to {self.experts} experts"
        if self.experts % self.ep:
            return f"{self.experts} experts do not divide by EP = {self.ep}"
        if self.mode not in MODES:
            return f"mode must be one of {', '.join(MODES)}"
        if self.experts * max(self.tokens, self.ranks) > LARGEST:
            return f"T x E and EP x TP x E can be at most {LARGEST}, or the data does not fit into memory"
        return None

    @property
    def ranks(self) -> int:
        """EP * TP."""
        return self.ep * self.tp

    @property
    def capacity(self) -> int | None:
        """Tokens that one expert takes from one rank; None when dropless."""
        if self.mode == "dropless":
            return None
        return math.ceil(self.tokens * self.topk / self.experts * CAPACITY_FACTOR)

    def layout(self, rank: int) -> ExpertLayout:
        """Return the layout as the rank with this index in the EP-major group sees it."""
        return ExpertLayout(self.experts, self.ep, self.tp, *divmod(rank, self.tp))


def sweep(
    experts: Sequence[int],
    ep: Sequence[int],
    tp: Sequence[int],
    tokens: Sequence[int],
    topk: Sequence[int],
    modes: Sequence[str],
    ranks: int | None = None,
) -> tuple[tuple[Shape, ...], tuple[str, ...]]:
    """Return every possible shape of the product, and why the other ones were left out.

    ranks: real ranks, which EP x TP must make up; None: any number. Raises BenchError when nothing is possible.
    """
    shapes, impossible = [], []
    for combination in itertools.product(experts, ep, tp, tokens, topk, modes):
        try:
            shape = Shape(*combination)
        except BenchError as error:
            impossible.append(str(error))
        else:
            if ranks in (None, shape.ranks):
                shapes.append(shape)
            else:
                impossible.append(f"impossible shape ({shape}): EP x TP must be the {ranks} ranks")
    if not shapes:
        raise BenchError(impossible[0] if len(impossible) == 1 else "no possible shape:\n" + "\n".join(impossible))
    return tuple(shapes), tuple(impossible)
