"""The reference, run for a dispatcher without touching it: what it would set is kept aside.

Nothing here waits for the device: what the chosen implementation reads too early must stay too early.
"""

from __future__ import annotations

import copy
import types
import weakref
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from mindspeed_moe.devices.accelerator import Accelerator
from mindspeed_moe.errors import GroupError
from mindspeed_moe.preprocess.attributes import Attributes
from mindspeed_moe.preprocess.reference import Reference
from mindspeed_moe.preprocess.site import Site
from mindspeed_moe.preprocess.sites import Sites


class Shadow:
    """A dispatcher to read from; what is written to it stays here.

    every: the counts of all ranks, [EP * TP * E] int64 in group order, from the last call; None without peers.
    """

    def __init__(self, dispatcher: Any) -> None:
        self.dispatcher = weakref.ref(dispatcher)
        self.every: torch.Tensor | None = None
        self.site: tuple[Site, Site] | None = None

    def __getattr__(self, name: str) -> Any:
        dispatcher = vars(self)["dispatcher"]()
        method = getattr(type(dispatcher), name, None)
        if isinstance(method, types.FunctionType):  # bound to this, so that it writes here too
            return types.MethodType(method, self)
        return getattr(dispatcher, name)

    def forget(self, names: tuple[str, ...]) -> None:
        """Drop what the last call has written."""
        self.every = None
        for name in names:
            vars(self).pop(name, None)

    def written(self, name: str) -> bool:
        """Return whether the reference has set an attribute."""
        return name in vars(self)


class _WitnessSites(Sites):
    """The sites of the chosen program: the same layouts and groups, for shadows.

    A communicator of its own would cost memory; the group is checked instead to hold the ranks in the right order.
    """

    def __init__(self, sites: Sites) -> None:
        self.experts = sites.experts
        self._chosen = sites

    @property
    def attributes(self) -> Attributes:  # type: ignore[override]
        """Those of the chosen program as they are now; but nobody is to count a call twice."""
        own = copy.copy(self._chosen.attributes)
        own.watch = None
        return own

    def of(self, shadow: Any) -> Site:
        site = self._chosen.of(shadow.dispatcher())
        if shadow.site is None or shadow.site[0] is not site:
            shadow.site = site, replace(site, group=None, buffers=None, padded=None)
        own: Site = shadow.site[1]
        return own

    def join(self, site: Site, shadow: Any) -> None:
        group, full = shadow.site[0].group, site.full_group
        ranks, wanted = dist.get_process_group_ranks(group), dist.get_process_group_ranks(full)
        if ranks != wanted:
            raise GroupError(
                f"verify: counts travel on a group of the ranks {ranks}, in this order; the TPxEP group has {wanted}"
            )
        site.group = group


class Witness(Reference):
    """The reference for shadows; `accelerator` as there."""

    def __init__(self, sites: Sites, accelerator: Accelerator | None) -> None:
        super().__init__(_WitnessSites(sites), accelerator)
        self._pins = accelerator

    def gathered(self, dispatcher: Any, every: torch.Tensor) -> None:
        """Keep every rank's counts."""
        dispatcher.every = every

    def to_host(self, values: torch.Tensor) -> torch.Tensor:
        """Start to copy to pinned memory: into any other the host would wait, and hide what is read too early.

        What is on the host already is taken as it is now.
        """
        if self._pins is None or values.device.type == "cpu":
            return values.clone()
        target = self._pins.pinned(values.numel(), values.dtype).view(values.shape)
        return target.copy_(values.contiguous(), non_blocking=True)
