"""The plan: what will be, or has been, patched for which dispatcher, and why. Printable, comparable, inert."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mindspeed_moe.config import Config
from mindspeed_moe.dispatch_table import Decision
from mindspeed_moe.environment import Environment


@dataclass(frozen=True)
class PlannedPatch:
    """One line of the plan.

    state: apply, unnecessary or skipped. detail: what takes the place, or the reason.
    """

    target: str
    unit: str
    kind: str
    state: str
    detail: str

    def __str__(self) -> str:
        done = {"replace": "replaced by", "wrap": "wrapped by", "supply": "supplied:"}[self.kind]
        return f"{done if self.state == 'apply' else self.state + ':'} {self.detail}"


@dataclass(frozen=True)
class Plan:
    """Environment, decisions with their reasons, and patches.

    generation is empty when nothing is enabled. `str(plan)` is a table; `to_dict()` is plain data for JSON.
    """

    config: Config
    environment: Environment
    device: str
    generation: str
    decisions: tuple[Decision, ...]
    patches: tuple[PlannedPatch, ...]
    notes: tuple[str, ...] = ()

    def implementation(self, dispatcher: str) -> str:
        """Return what runs for a dispatcher: packed, reference or stock."""
        for decision in self.decisions:
            if decision.dispatcher == dispatcher:
                return decision.implementation
        return "stock"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "config": self.config.model_dump(mode="json"),
            "environment": self.environment.to_dict(),
            "device": self.device,
            "generation": self.generation,
            "decisions": [
                {
                    **{key: value for key, value in asdict(decision).items() if key not in ("row", "rejected")},
                    "evidence": decision.row.evidence if decision.row else "Megatron's own",
                    "rejected": dict(decision.rejected),
                }
                for decision in self.decisions
            ],
            "patches": [asdict(patch) for patch in self.patches],
            "notes": list(self.notes),
        }

    def patch_rows(self) -> tuple[tuple[str, str, str], ...]:
        """Return unit, target and what happens there, for every patch."""
        return tuple((patch.unit, patch.target, str(patch)) for patch in self.patches)

    def __str__(self) -> str:
        # rich is loaded when something is shown, not on enable
        from mindspeed_moe.tables import decision_table, patch_table, render

        head = f"mindspeed_moe on {self.device}, contract {self.generation or '-'}"
        tables = [decision_table(self.decisions), patch_table(self.patch_rows())] if self.decisions else []
        return render(head, *tables, *(f"note: {note}" for note in self.notes))
