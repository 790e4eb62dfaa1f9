"""What was found, decided and patched, as tables for a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table

from mindspeed_moe.conditions import CONDITIONS, group_memory
from mindspeed_moe.dispatch_table import Decision
from mindspeed_moe.environment import Environment

WIDTH = 120  # of text that no terminal wraps: logs and files


def environment_table(environment: Environment) -> Table:
    """What was found on the machine."""
    table = plain_table("Environment", "what", "found")
    table.add_row("python", environment.python)
    for name in ("torch", "torch_npu", "megatron_core", "mindspeed"):
        table.add_row(name.replace("_", "-"), str(getattr(environment, name)))
    for device, found in environment.devices.items():
        usable = "usable" if device in environment.available else "not usable"
        table.add_row(f"device {device}", f"{usable}: {found}")
    table.add_row("rank", f"{environment.rank} of {environment.world_size}")
    return table


def decision_table(decisions: Iterable[Decision]) -> Table:
    """What was chosen for each dispatcher, and why the other candidates lost."""
    table = plain_table("Decisions", "dispatcher", "implementation", "choices", "why")
    for decision in decisions:
        choices = ", ".join(
            f"{name} {value}"
            for name, value in (
                ("counts", decision.counts),
                ("exchange", decision.exchange),
                ("exchange_group", decision.exchange_group),
                ("stream", decision.stream if len(decision.row.stream if decision.row else ()) > 1 else ""),
                ("tokens_per_expert", decision.tokens_per_expert),
            )
            if value
        )
        evidence = f" ({decision.row.evidence})" if decision.row else ""
        table.add_row(decision.dispatcher, decision.implementation, choices, decision.reason + evidence)
        for candidate, reason in decision.rejected:
            table.add_row("", f"not {candidate}", "", reason)
    return table


def condition_table(device: str, variables: Mapping[str, str]) -> Table:
    """What happens under unusual conditions, and what the exchange's groups cost in memory."""
    table = plain_table("Conditions", "when", "what happens", "why")
    for condition in CONDITIONS:
        table.add_row(condition.name, condition.outcome, condition.reason)
    for group, cost in group_memory(device, variables).items():
        table.add_row(f"exchange_group: {group}", f"device memory of a rank: {cost}", "a communicator's buffers")
    return table


def patch_table(rows: Iterable[tuple[str, str, str]]) -> Table:
    """Every patch of a plan: unit, target, and what happens to it."""
    table = plain_table("Patches", "unit", "target", "what happens")
    for row in rows:
        table.add_row(*row)
    return table


def render(*parts: RenderableType) -> str:
    """Return renderables as plain text of fixed width."""
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, highlight=False, markup=False)
    for part in parts:
        console.print(part)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().rstrip()


def plain_table(title: str, *columns: str) -> Table:
    """Return an empty table in the style of all tables here."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
