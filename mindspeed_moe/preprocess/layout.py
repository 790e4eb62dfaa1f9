"""Where experts live. Pure data: knows nothing of torch, Megatron or patching."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from mindspeed_moe.errors import GroupError


@dataclass(frozen=True)
class ExpertLayout:
    """The expert layout as one rank sees it (legend in the package's docstring).

    num_experts: E. ep_size: EP. tp_size: TP. ep_rank, tp_rank: this rank's coordinates.
    Raises GroupError when the experts do not divide evenly or a coordinate is out of range.
    """

    num_experts: int
    ep_size: int
    tp_size: int
    ep_rank: int
    tp_rank: int

    def __post_init__(self) -> None:
        if self.num_experts < 1 or self.ep_size < 1 or self.tp_size < 1:
            raise GroupError(f"{self}: sizes must be at least 1")
        if self.num_experts % self.ep_size:
            raise GroupError(f"{self}: {self.num_experts} experts do not divide by EP = {self.ep_size}")
        if not (0 <= self.ep_rank < self.ep_size and 0 <= self.tp_rank < self.tp_size):
            raise GroupError(f"{self}: coordinates outside of EP x TP")

    @cached_property
    def num_local_experts(self) -> int:
        """L."""
        return self.num_experts // self.ep_size

    @cached_property
    def group_size(self) -> int:
        """EP * TP, the number of ranks that exchange counts."""
        return self.ep_size * self.tp_size

    @cached_property
    def group_index(self) -> int:
        """This rank's index in the TPxEP group, which is EP-major."""
        return self.ep_rank * self.tp_size + self.tp_rank

    @cached_property
    def first_expert(self) -> int:
        """The global index of this rank's first expert."""
        return self.ep_rank * self.num_local_experts
