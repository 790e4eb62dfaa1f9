"""What is patched and why, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["replace", "wrap", "supply"]


@dataclass(frozen=True, kw_only=True)
class PatchSpec:
    """One patch.

    target: full dotted path of a module's or class's attribute.
    kind: replace (the new callable stands for the old one), wrap (it calls the old one: `__wrapped__` must be
        the original), supply (the name does not exist and is added; nothing to do where it does).
    build: (original, context) -> what to put there. The context is whatever the caller applies the patches with.
    unit: patches of one unit only make sense together; a conflict skips all of them.
    parameters: the names of the parameters that the target must have, in order; None when it has no signature
        to look at. A replacement must have the same ones.
    home: modules in which the untouched original is defined; anything else that stands there is somebody's patch.
        Empty: the module that the target path names.
    aliases: dotted paths that hold the same object through `from ... import ...` and are rebound with it.
    over_others: a wrap that composes with whatever stands there, somebody else's patch included.
    needed: (context) -> whether the patch is applied at all.
    generations: names of contract generations that the patch is for; empty means all.
    why, how, upstream, remove_when: for the reader, and for docs/PATCHES.md.
    """

    target: str
    kind: Kind
    build: Callable[[Any, Any], Any]
    unit: str
    why: str
    how: str
    upstream: str
    remove_when: str
    parameters: tuple[str, ...] | None = None
    home: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    over_others: bool = False
    needed: Callable[[Any], bool] = lambda context: True
    generations: tuple[str, ...] = ()

    def is_for(self, generation: str) -> bool:
        """Return whether the patch belongs to a contract generation."""
        return not self.generations or generation in self.generations
