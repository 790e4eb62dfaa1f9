"""Attributes that wait for themselves, where Megatron offers no method to wait in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mindspeed_moe.patching import PatchSpec
from mindspeed_moe.preprocess.program import Program, not_compiled, uncompiled


def waiting_attributes(
    owner: str, names: tuple[str, ...], *, unit: str, generations: tuple[str, ...], upstream: str
) -> tuple[PatchSpec, ...]:
    """Return the patches that put a property in the place of each attribute of the class `owner`."""
    return tuple(
        PatchSpec(
            target=f"{owner}.{name}",
            kind="supply",
            build=_waiting(name),
            needed=lambda program: bool(program.waits_later),
            unit=unit,
            generations=generations,
            why="Megatron waits for the whole stream in the middle of a long method, before it reads this attribute.",
            how="A property: reading it waits for the one copy that is under way, if its value comes with it. The "
            "value itself stays in the dispatcher's own dictionary, also when the plugin is disabled.",
            upstream=upstream,
            remove_when="the release is no longer supported: from 0.12 on there is a hook to wait in.",
        )
        for name in names
    )


def _waiting(name: str) -> Callable[[object, Program], property]:
    def build(original: object, program: Program) -> property:
        run = uncompiled(program.host_copies)

        @not_compiled
        def read(self: Any) -> Any:
            run(self, name, None)
            try:
                return vars(self)[name]
            except KeyError:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}") from None

        def write(self: Any, value: Any) -> None:
            vars(self)[name] = value

        return property(read, write)

    return build
