"""One thing that a launch can do to the plugin, and the words for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packaging.version import Version

from mindspeed_moe.contract.generations import GENERATIONS
from mindspeed_moe.mindspeed.arguments import same

COMPOSES = "composes"
WRAPS = "wraps ours"
TAKEN = "ours takes its place"
BYPASSED = "bypasses ours"
REFUSED = "refused"
FAILS = "fails anyway"
INEFFECTIVE = (BYPASSED, REFUSED, FAILS)

FIRST, LAST = GENERATIONS[0].releases[0], GENERATIONS[-1].releases[-1]
# The releases of megatron-core for which a MindSpeed was read; there is none for the others.
READ = tuple(Version(one).release for one in ("0.10", "0.12", "0.14", "0.15", "0.16", "0.17", "0.18"))
NEWEST_READ = READ[-1]


@dataclass(frozen=True)
class Conflict:
    """One row.

    feature: MindSpeed's name for it. when: (argument, value); True: it is set, False: it is not, a string: it is that.
    launch: a line that has it, for the reader and for the tests. effect: one of the words above.
    reason: why, in a sentence. releases: first and last megatron-core, both included.
    whole_launch: it is about what a launch leaves out, so that only a whole command line can tell.
    leaves: dispatchers that stay stock with it, for MindSpeed reads of them what only Megatron's preprocess leaves.
    """

    feature: str
    when: tuple[tuple[str, Any], ...]
    launch: str
    effect: str
    reason: str
    releases: tuple[tuple[int, int], tuple[int, int]] = (FIRST, LAST)
    whole_launch: bool = False
    leaves: tuple[str, ...] = ()

    def applies(self, args: Mapping[str, Any], release: tuple[int, int]) -> bool:
        """Return whether a launch with these arguments and this megatron-core has it."""
        first, last = self.releases
        return first <= release <= last and all(same(args.get(name), value) for name, value in self.when)

    def span(self) -> str:
        """Return the releases as text."""
        first, last = (".".join(map(str, one)) for one in self.releases)
        return first if first == last else f"{first} to {last}"

    def __str__(self) -> str:
        words = {BYPASSED: "bypasses mindspeed_moe", REFUSED: "and mindspeed_moe exclude each other"}
        return f"{self.feature} {words.get(self.effect, self.effect)}: {self.reason}"


def between(first: str, last: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return two releases as a row wants them: between("0.12", "0.16")."""
    (major, minor, *_), (to_major, to_minor, *_) = Version(first).release, Version(last).release
    return (major, minor), (to_major, to_minor)
