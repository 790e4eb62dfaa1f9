"""What has been run and what came of it: a table, the failures, where ranks stood; the same as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import RenderableType

from mindspeed_moe.selftest.steps import LeftOut, Step
from mindspeed_moe.selftest.verdicts import Problem
from mindspeed_moe.tables import plain_table

PASSED, REFUSED, FAILED, NOT_TRIED = "passed", "refused", "failed", "not tried"
STATES = (PASSED, REFUSED, FAILED, NOT_TRIED)
_MOST = 30  # failures that the table's reader is shown


@dataclass(frozen=True)
class Outcome:
    """One step. problems: of all ranks. seconds: this rank's."""

    step: Step
    state: str
    seconds: float
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Stop:
    """Why the run ended before its last step, and where every rank stood then."""

    problem: str
    standings: Mapping[int, str]


@dataclass
class Report:
    """Grows with the run. planned: number of steps. head: what was run where, in one line."""

    head: str
    seed: int
    planned: int
    left_out: Sequence[LeftOut]
    outcomes: list[Outcome] = field(default_factory=list)
    stop: Stop | None = None

    @property
    def passed(self) -> bool:
        """Whether every planned step was run, and none has failed."""
        bad = any(one.state in (FAILED, NOT_TRIED) for one in self.outcomes)
        return self.stop is None and not bad and len(self.outcomes) == self.planned

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "passed": self.passed,
            "head": self.head,
            "seed": self.seed,
            "planned": self.planned,
            "counts": {state: sum(one.state == state for one in self.outcomes) for state in STATES},
            "seconds": round(sum(one.seconds for one in self.outcomes), 3),
            "rows": [
                {
                    "layout": {"ep": step.layout.ep, "tp": step.layout.tp, "local_experts": step.layout.local_experts},
                    "dispatcher": step.dispatcher,
                    "mode": step.mode,
                    **{state: counts[state] for state in STATES},
                    "seconds": round(seconds, 3),
                }
                for step, counts, seconds in self._rows()
            ],
            "failures": [problem.to_dict() for one in self.outcomes for problem in one.problems],
            "left_out": [{"what": one.what, "reason": one.reason} for one in self.left_out],
            "stopped": None
            if self.stop is None
            else {
                "problem": self.stop.problem,
                "ranks": {str(rank): where for rank, where in self.stop.standings.items()},
            },
        }

    def parts(self) -> list[RenderableType]:
        """Return what a terminal shows."""
        table = plain_table("", "layout", "dispatcher", "mode")
        for column in (*STATES, "seconds"):
            table.add_column(column, justify="right")
        for step, counts, seconds in self._rows():
            numbers = (str(counts[state]) for state in STATES)
            table.add_row(str(step.layout), step.dispatcher, step.mode, *numbers, f"{seconds:.1f}")
        parts: list[RenderableType] = [self.head, table]
        reasons = Counter(one.reason for one in self.left_out)
        parts += [f"left out, {number} times: {reason}" for reason, number in reasons.items()]
        problems = [problem for one in self.outcomes for problem in one.problems]
        parts += [f"FAILED: {problem}" for problem in problems[:_MOST]]
        if len(problems) > _MOST:
            parts.append(f"and {len(problems) - _MOST} more, which --json lists")
        if self.stop is not None:
            parts.append(f"STOPPED: {self.stop.problem}")
            parts += [f"--- rank {rank} stands here:\n{where}" for rank, where in self.stop.standings.items()]
        return [*parts, self.verdict()]

    def verdict(self) -> str:
        """Return the last line."""
        counts = Counter(one.state for one in self.outcomes)
        told = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]) or "nothing was run"
        missing = self.planned - len(self.outcomes)
        told += f", {missing} not reached" if missing else ""
        return f"selftest {'passed' if self.passed else 'FAILED'}: {told} (seed {self.seed})"

    def _rows(self) -> list[tuple[Step, Counter[str], float]]:
        rows: dict[str, tuple[Step, Counter[str], list[float]]] = {}
        for one in self.outcomes:
            _, counts, seconds = rows.setdefault(one.step.row, (one.step, Counter(), []))
            counts[one.state] += 1
            seconds.append(one.seconds)
        return [(step, counts, sum(seconds)) for step, counts, seconds in rows.values()]
