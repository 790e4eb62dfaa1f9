"""`mindspeed-moe doctor --contract`: the installed release beside its contract, line by line."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import RenderableType

from mindspeed_moe.contract import Generation, generation_of
from mindspeed_moe.contract.generations import ALLTOALL, LEGACY, TOKEN_DISPATCHER
from mindspeed_moe.contract.probes import DRIFTED, Finding, compare, import_whole
from mindspeed_moe.contract.requirements import MOE_LAYER, MOE_UTILS
from mindspeed_moe.environment import Environment
from mindspeed_moe.errors import MindSpeedMoEError
from mindspeed_moe.patching import patched_by_others
from mindspeed_moe.tables import plain_table

_OWNERS = (ALLTOALL, LEGACY, MOE_UTILS, MOE_LAYER, "")  # one table each


@dataclass
class ContractReport:
    """What a release should have and has, for everything that the plugin can patch; problems that kept from looking."""

    environment: Environment
    generation: Generation | None = None
    findings: tuple[Finding, ...] = ()
    problems: list[str] = field(default_factory=list)

    @property
    def kept(self) -> bool:
        """Whether the release could be looked at and nothing has drifted."""
        return not self.problems and all(one.state != DRIFTED for one in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        found = self.environment.megatron_core
        return {
            "megatron_core": asdict(found),
            "megatron_folders": list(self.environment.megatron_folders),
            "generation": str(self.generation) if self.generation else None,
            "findings": [asdict(one) for one in self.findings],
            "problems": self.problems,
            "kept": self.kept,
        }

    def parts(self) -> list[RenderableType]:
        """Return what a terminal shows: the release, the table, what it comes to."""
        folders = self.environment.megatron_folders[:1]
        parts: list[RenderableType] = [f"megatron-core {self.environment.megatron_core}" + "".join(map(_in, folders))]
        if self.generation:
            parts.append(f"contract {self.generation}: {self.generation.contract}")
        if self.findings:
            for owner in _OWNERS:
                own = [one for one in self.findings if _owner(one) == owner]
                table = plain_table(owner or "Other modules", "what", "expected", "found", "", "why")
                what, expected, found, *_ = table.columns
                what.min_width, expected.max_width, found.max_width = 34, 19, 19  # room for the reason
                for one in own:
                    table.add_row(_short(one.what, owner), one.expected, one.found, one.state, one.why)
                parts += [table] if own else []
            states = Counter(one.state for one in self.findings)
            parts.append(", ".join(f"{count} {state}" for state, count in states.items()))
        return parts + [f"problem: {problem}" for problem in self.problems]


def compare_installed(environment: Environment) -> ContractReport:
    """Compare the installed release with its contract, for every patch there is; imports Megatron. Raises nothing."""
    report = ContractReport(environment)
    found = environment.megatron_core
    if found.version is None:
        report.problems.append(f"megatron-core: {found}; there is no contract to compare")
        return report
    try:
        report.generation = generation_of(found.version)
        import_whole(TOKEN_DISPATCHER)
        from mindspeed_moe.patches import catalogue

        specs = (spec for spec in catalogue() if spec.is_for(report.generation.name))
        report.findings = compare(report.generation, patched_by_others(specs))
    except MindSpeedMoEError as error:
        report.problems.append(f"{type(error).__name__}: {error}")
    return report


def _owner(finding: Finding) -> str:
    return next(owner for owner in _OWNERS if owner in finding.what)


def _short(what: str, owner: str) -> str:
    """Leave out what the table's title says already."""
    short = what.replace(f"objects of {owner}", "objects").replace(f"{owner}.", "")
    return short.replace(owner, "the class" if "Dispatcher" in owner else "it") if owner else what


def _in(folder: str) -> str:
    return f", in {folder}"
