"""What a model would gain: operations that preprocess launches, times what one of each costs the host.

The counts are exact: those of the simulated Ascend runtime's ledger with megatron-core 0.16.1, which a test holds
them against. The prices are a machine's own. The model leaves out arithmetic on the host, and whatever overlaps;
time in which the host waits for the device is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields

from mindspeed_moe.config.tuned import OperationCosts
from mindspeed_moe.errors import ConfigError

ALONE, TP_1, TP_MORE = "EP = TP = 1", "EP > 1, TP = 1", "TP > 1"
LAYOUTS = (ALONE, TP_1, TP_MORE)


@dataclass(frozen=True)
class Operations:
    """Operations of one call of preprocess with its host half. records: without the collective's own."""

    kernels: int = 0
    collectives: int = 0
    copies: int = 0
    records: int = 0
    waits: int = 0


Counts = Mapping[tuple[str, str], Operations]

_NOTHING = Operations()
_DROP_STOCK = Operations(kernels=7, collectives=1, copies=6, records=13, waits=1)
_PACKED = Operations(kernels=1, collectives=1, copies=1, records=1, waits=1)
_PACKED_2 = Operations(kernels=2, collectives=1, copies=1, records=1, waits=1)
_PACKED_3 = Operations(kernels=3, collectives=1, copies=1, records=1, waits=1)
_PACKED_ALONE = Operations(kernels=1, copies=1, records=1, waits=1)

# (mode, layout) -> operations, for L > 1. Both leave the experts' counts on the host, as stock always does;
# `packed` exchanges with all_to_all on the current stream.
STOCK: Counts = {
    ("dropless", ALONE): Operations(kernels=1, copies=2, records=4, waits=1),
    ("dropless", TP_1): Operations(kernels=6, collectives=1, copies=5, records=11, waits=1),
    ("dropless", TP_MORE): Operations(kernels=6, collectives=1, copies=5, records=11, waits=1),
    ("dropless, fused permute", ALONE): Operations(kernels=1, copies=1, records=3, waits=1),
    ("dropless, fused permute", TP_1): Operations(kernels=6, collectives=1, copies=4, records=9, waits=1),
    ("dropless, fused permute", TP_MORE): Operations(kernels=6, collectives=1, copies=4, records=9, waits=1),
    ("drop", ALONE): Operations(kernels=2, copies=3, records=6, waits=1),
    ("drop", TP_1): _DROP_STOCK,
    ("drop", TP_MORE): _DROP_STOCK,
    ("router padding", ALONE): Operations(kernels=2, copies=3, records=6, waits=1),
    ("router padding", TP_1): _DROP_STOCK,
    ("router padding", TP_MORE): _DROP_STOCK,
    **{("pad", layout): _NOTHING for layout in LAYOUTS},
}
PACKED: Counts = {
    ("dropless", ALONE): _PACKED_ALONE,
    ("dropless", TP_1): _PACKED,
    ("dropless", TP_MORE): _PACKED_2,
    ("dropless, fused permute", ALONE): _PACKED_ALONE,
    ("dropless, fused permute", TP_1): _PACKED_2,
    ("dropless, fused permute", TP_MORE): _PACKED_3,
    ("drop", ALONE): _PACKED_ALONE,
    ("drop", TP_1): _PACKED,
    ("drop", TP_MORE): _PACKED_2,
    ("router padding", ALONE): _PACKED_ALONE,
    ("router padding", TP_1): _PACKED,
    ("router padding", TP_MORE): _PACKED_2,
    **{("pad", layout): _NOTHING for layout in LAYOUTS},
}
MODES = tuple(dict.fromkeys(mode for mode, _ in STOCK))


def layout_of(ep: int, tp: int) -> str:
    """Return which of LAYOUTS these sizes are."""
    return TP_MORE if tp > 1 else TP_1 if ep > 1 else ALONE


@dataclass(frozen=True)
class Model:
    """layers: MoE layers of one pipeline stage. micro_batches: of one step. recompute: preprocess runs twice.

    Raises ConfigError for an impossible model.
    """

    layers: int
    micro_batches: int
    mode: str
    layout: str
    recompute: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"mode: {self.mode!r}; allowed: {', '.join(MODES)}")
        for name, value in (("layers", self.layers), ("micro-batches", self.micro_batches)):
            if value < 1:
                raise ConfigError(f"{name}: {value}; at least 1")

    @property
    def calls(self) -> int:
        """Calls of preprocess in one step on one rank."""
        return self.layers * self.micro_batches * (2 if self.recompute else 1)


@dataclass(frozen=True)
class Estimate:
    """Microseconds of host time: of one call, and saved in one step."""

    stock_us: float
    packed_us: float
    calls: int

    @property
    def saved_us(self) -> float:
        """Saved in one step on one rank."""
        return (self.stock_us - self.packed_us) * self.calls

    @property
    def ratio(self) -> float | None:
        """Stock's launches over packed's; None where they cost nothing."""
        return self.stock_us / self.packed_us if self.packed_us else None


def price(operations: Operations, costs: OperationCosts) -> float:
    """Return microseconds of host time."""
    prices = (costs.kernel, costs.collective, costs.copy_to_host, costs.record, costs.wait)
    return float(sum(count * one for count, one in zip(astuple(operations), prices, strict=True)))


def estimate(model: Model, costs: OperationCosts) -> Estimate:
    """Return what a model would gain on a machine with these prices."""
    key = model.mode, model.layout
    return Estimate(price(STOCK[key], costs), price(PACKED[key], costs), model.calls)


def breakdown(model: Model) -> tuple[tuple[str, int, int], ...]:
    """Return (operation, stock's number, packed's number) of one call."""
    key = model.mode, model.layout
    return tuple(
        (one.name, getattr(STOCK[key], one.name), getattr(PACKED[key], one.name)) for one in fields(Operations)
    )
