"""What the demo runs: sizes of model and parallel groups, checked before a process is started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import lcm
from pathlib import Path
from typing import Any

from mindspeed_moe.errors import ConfigError

IMPLEMENTATIONS = ("stock", "reference", "packed")
TELEMETRY, DUMPS = "telemetry", "dumps"  # folders beside the summary
WATCHED = "packed"  # what `verify` compares with the reference, and whose load is written down
ALLTOALL, SEQ = DISPATCHERS = ("alltoall", "alltoall_seq")  # as Megatron's configuration names them
MAX_PROCESSES = 64  # each takes some hundred MB and a share of the cores


@dataclass(frozen=True)
class Model:
    """Sizes of the model and of a batch.

    ffn: width of one expert. sequence: tokens, which are bytes. batch: sequences per data-parallel rank and step.
    """

    vocabulary: int = 256
    layers: int = 2
    hidden: int = 64
    heads: int = 4
    ffn: int = 128
    experts: int = 8
    topk: int = 2
    sequence: int = 64
    batch: int = 4
    learning_rate: float = 3e-3
    aux_loss: float = 0.01
    seed: int = 1234


@dataclass(frozen=True)
class Settings:
    """One run of the demo; make it with `settle`, which checks it.

    processes are tp x data_parallel for the dense part, ep x etp x (copies) for the experts. text is None for the
    default text.
    """

    tp: int
    ep: int
    etp: int
    processes: int
    steps: int
    implementations: tuple[str, ...]
    text: Path | None = None
    model: Model = Model()
    device: str = "cpu"
    dispatcher: str = ALLTOALL
    verify: str = "off"
    out: Path | None = None

    @property
    def data_parallel(self) -> int:
        """Ranks that see different sequences."""
        return self.processes // self.tp

    @property
    def tokens_per_step(self) -> int:
        """Tokens that all ranks together train on in a step."""
        return self.data_parallel * self.model.batch * self.model.sequence

    def configuration(self, implementation: str) -> dict[str, Any]:
        """Return the plugin's configuration under which an implementation trains; the other dispatcher stays stock.

        Without MindSpeed, also where it is installed: the demo is Megatron's.
        """
        wanted = {name: implementation if name == self.dispatcher else "stock" for name in DISPATCHERS}
        plain = {"device": self.device, "dispatchers": wanted, "mindspeed": "off"}
        return {**plain, **self._watched()} if implementation == WATCHED else plain

    def _watched(self) -> dict[str, Any]:
        if self.out is None:
            return {"verify": self.verify}
        telemetry = {"enabled": True, "folder": str(self.out / TELEMETRY)}
        return {"verify": self.verify, "dumps": str(self.out / DUMPS), "telemetry": telemetry}

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        plain = {key: value and str(value) for key, value in (("text", self.text), ("out", self.out))}
        return {**asdict(self), "implementations": list(self.implementations), **plain}


def settle(
    *,
    tp: int = 1,
    ep: int = 2,
    etp: int = 2,
    processes: int | None = None,
    steps: int = 200,
    implementations: Sequence[str] = IMPLEMENTATIONS,
    text: Path | None = None,
    model: Model = Model(),
    device: str = "cpu",
    dispatcher: str = ALLTOALL,
    verify: str = "off",
    out: Path | None = None,
) -> Settings:
    """Check the sizes and settle the number of processes: by default the fewest that hold both kinds of groups.

    Raises ConfigError that names the option, its value and what is allowed.
    """
    for option, value in (("--tp", tp), ("--ep", ep), ("--etp", etp), ("--steps", steps)):
        if value < 1:
            raise ConfigError(f"{option} {value}: must be at least 1")
    _shares("--ep", ep, "experts", model.experts)
    _shares("--etp", etp, "rows of an expert's weights", model.ffn)
    _shares("--tp", tp, "attention heads", model.heads)
    _shares("--tp", tp, "tokens of a sequence", model.sequence)
    _shares("--tp", tp, "words of the vocabulary", model.vocabulary)
    if dispatcher == SEQ and etp != tp:
        raise ConfigError(
            f"--etp {etp}: --dispatcher {SEQ} shares experts and the dense part alike; allowed: {tp} (--tp)"
        )
    fewest = lcm(tp, ep * etp)
    processes = fewest if processes is None else processes
    if processes < 1 or processes % fewest:
        raise ConfigError(
            f"--processes {processes}: must be a multiple of {fewest} for --tp {tp} and --ep {ep} x --etp {etp}"
        )
    if processes > MAX_PROCESSES:
        raise ConfigError(f"{processes} processes on one machine; at most {MAX_PROCESSES} are allowed")
    unknown = [name for name in implementations if name not in IMPLEMENTATIONS]
    if unknown or not implementations or len(set(implementations)) < len(implementations):
        raise ConfigError(
            f"--implementations {','.join(implementations)!r}: "
            f"{'unknown ' + repr(unknown[0]) if unknown else 'each must be named once'}; "
            f"allowed: one or more of {', '.join(IMPLEMENTATIONS)}, separated by commas"
        )
    return Settings(tp, ep, etp, processes, steps, tuple(implementations), text, model, device, dispatcher, verify, out)


def _shares(option: str, size: int, what: str, count: int) -> None:
    if count % size:
        fits = ", ".join(str(number) for number in range(1, count + 1) if count % number == 0)
        raise ConfigError(f"{option} {size}: the demo's {count} {what} cannot be shared evenly; allowed: {fits}")
