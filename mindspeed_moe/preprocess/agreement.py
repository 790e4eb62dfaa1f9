"""Ranks that disagree would hang in a collective, or train models of two kinds: find out before that, by name.

All comparisons go through the process group's key-value store, so the steps themselves carry no extra collective.

A TPxEP group compares before each dispatcher's first exchange, and its ranks wait for each other: the exchange would
hang. Dispatchers reach their first exchange in the same order on all ranks (collectives must), so the n-th comparison
in a group concerns the same layer everywhere.

A whole launch compares without waiting, of ranks that build a MoE layer with the plugin on: pipeline stages come one
after the other, and some have no MoE layer at all.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
import weakref
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, ClassVar

import torch.distributed as dist

from mindspeed_moe import log
from mindspeed_moe.errors import GroupError

Store = Any  # torch.distributed.Store, which not every build of torch has
Facts = Mapping[str, str | int]

_REFUSED = "refused"  # in the place of facts

# The first rank may begin to wait later than the others; its verdict names the silent rank, so they wait for it.
_HEAD_START = timedelta(seconds=30)
_LOOK_S = 1.0  # who waits for a rank asks so often whether the launch disagrees
_PAUSE_S = 0.25  # and so often, at last, whether the rank has come


def _nothing() -> str:
    return ""


def launch_store() -> Store | None:
    """Return the store that all ranks of a launch share.

    None where there is nobody to compare with: without process groups, and with torch's fake ones, which sizing tools
    use to build a large launch's model in one process.
    """
    if not dist.is_initialized() or dist.get_backend() == "fake":
        return None
    return dist.distributed_c10d._get_default_store()


def patience(group: dist.ProcessGroup) -> timedelta | None:
    """Return how long collectives of a group wait for a rank; None where that is not known.

    A wrapper around a group has no backend of its own: as long as those of all ranks, then.
    """
    groups: tuple[Any, ...] = (group, dist.group.WORLD)
    for one in groups:
        with contextlib.suppress(RuntimeError, AttributeError):  # of backends and of releases of torch that do not say
            waits: list[timedelta] = [one._get_backend(device).options._timeout for device in one._device_types]
            if waits:
                return max(waits)
    return None


def require_agreement(group: dist.ProcessGroup, facts: Facts, elsewhere: Callable[[], str] = _nothing) -> None:
    """Compare `facts` over the ranks of a process group, as patient as the collectives that come after it.

    elsewhere: as for `compare`. Raises GroupError on every rank when the facts differ anywhere, or when a rank does not
    report in time.
    """
    store = launch_store()
    if store is not None:
        ranks = tuple(dist.get_process_group_ranks(group))
        compare(store, ranks, dist.get_rank(), facts, patience(group) or store.timeout, elsewhere)


def refuse(group: dist.ProcessGroup, why: str) -> None:
    """This rank raises an error of its own instead of `require_agreement`: the others hear why, and do not wait."""
    store = launch_store()
    if store is not None:
        with contextlib.suppress(RuntimeError):  # the store may be gone with its host; the error itself must come out
            refuse_in(store, tuple(dist.get_process_group_ranks(group)), dist.get_rank(), why)


def compare(
    store: Store,
    ranks: tuple[int, ...],
    own_rank: int,
    facts: Facts,
    timeout: timedelta,
    elsewhere: Callable[[], str] = _nothing,
) -> None:
    """Compare `facts` through a store; the first rank of the group reads all, the others read its verdict.

    ranks: global ranks of the group in group order. own_rank: this process's global rank. elsewhere: what is wrong
    outside of the group, or an empty string; the first rank asks for all of them, so that they end together, and others
    ask while they wait for one that may never come, such as a rank on stock.
    Raises GroupError on every rank when the facts differ anywhere, or when a rank does not report in time.
    """
    prefix = _turn(store, ranks, own_rank)
    _report(store, prefix, own_rank, facts)
    if own_rank == ranks[0]:
        _give_verdict(store, prefix, _judge(store, prefix, ranks, timeout, elsewhere) or elsewhere())
    try:
        verdict = _await(store, f"{prefix}/judged", 1, timeout + min(timeout, _HEAD_START), elsewhere)
        verdict = verdict or store.get(f"{prefix}/verdict").decode()
    except RuntimeError as error:
        raise GroupError(
            f"rank {own_rank}: rank {ranks[0]} gave no verdict on the expert layout within {timeout}: "
            f"is the plugin enabled there, and the process alive? ({error})"
        ) from error
    if verdict:
        raise GroupError(f"rank {own_rank}: {verdict}")


def refuse_in(store: Store, ranks: tuple[int, ...], own_rank: int, why: str) -> None:
    """Put an error in the place of this rank's facts; of the first rank it is the verdict."""
    prefix = _turn(store, ranks, own_rank)
    if own_rank == ranks[0]:
        _give_verdict(store, prefix, _refusal(own_rank, why))
    else:
        _report(store, prefix, own_rank, {_REFUSED: why})


def _turn(store: Store, ranks: tuple[int, ...], own_rank: int) -> str:
    """Return what the keys of a group's next comparison begin with."""
    members = f"mindspeed_moe/{','.join(map(str, ranks))}"
    # Counted in the store itself: it outlives disable() and enable().
    return f"{members}/{store.add(f'{members}/turns/{own_rank}', 1)}"


def _refusal(rank: int, why: str) -> str:
    return f"rank {rank} of the TPxEP group cannot take part: {why}"


def _report(store: Store, prefix: str, rank: int, told: Mapping[str, str | int]) -> None:
    store.set(f"{prefix}/{rank}", json.dumps(dict(told), sort_keys=True))
    store.add(f"{prefix}/{rank}/there", 1)
    store.add(f"{prefix}/there", 1)


def _give_verdict(store: Store, prefix: str, verdict: str) -> None:
    store.set(f"{prefix}/verdict", verdict)
    store.add(f"{prefix}/judged", 1)


def _await(store: Store, counter: str, wanted: int, timeout: timedelta, elsewhere: Callable[[], str]) -> str:
    """Wait until a counter has come so far, and return an empty string; or before that what is wrong elsewhere.

    The store is asked again and again: a wait of its own whose time is over would be logged, and may leave an answer
    behind on the connection. Raises RuntimeError when the time is over, or the store is gone.
    """
    now = time.monotonic()
    until, look, pause_s = now + timeout.total_seconds(), now + _LOOK_S, 0.001
    while store.add(counter, 0) < wanted:
        now = time.monotonic()
        if now > until:
            raise RuntimeError(f"waited for {timeout.total_seconds():.0f} s")
        if now > look:
            look = now + _LOOK_S
            told = elsewhere()
            if told:
                return told
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _PAUSE_S)
    return ""


def _judge(store: Store, prefix: str, ranks: tuple[int, ...], timeout: timedelta, elsewhere: Callable[[], str]) -> str:
    """Return what is wrong, or an empty string."""
    try:
        told = _await(store, f"{prefix}/there", len(ranks), timeout, elsewhere)
    except RuntimeError as error:
        silent = [rank for rank in ranks if not store.add(f"{prefix}/{rank}/there", 0)]
        return (
            f"ranks {silent} of the TPxEP group {list(ranks)} did not report their expert layout within {timeout}: "
            f"is the plugin enabled there, and are the processes alive? ({error})"
        )
    if told:
        return told
    reports = {rank: json.loads(store.get(f"{prefix}/{rank}")) for rank in ranks}
    refusals = [_refusal(rank, str(report[_REFUSED])) for rank, report in reports.items() if _REFUSED in report]
    if refusals:
        return "; ".join(refusals)
    different = _told(reports)
    if not different:
        return ""
    return f"the ranks of the TPxEP group {list(ranks)} disagree: {different}"


def _told(reports: Mapping[int, Facts]) -> str:
    """Say which facts differ, and who has which value; an empty string when none does."""
    different = []
    for fact in dict.fromkeys(fact for report in reports.values() for fact in report):
        by_value: dict[object, list[int]] = {}
        for rank, report in reports.items():
            by_value.setdefault(report.get(fact), []).append(rank)
        if len(by_value) > 1:
            told = "; ".join(f"{value!r} on ranks {who}" for value, who in by_value.items())
            different.append(f"{fact}: {told}")
    return " | ".join(different)


class LaunchAgreement:
    """What all ranks of a launch must have in common, whatever their groups.

    Each rank tells what it has when it builds its layers, and the store keeps whoever differs from the first that came.
    Before a layer's first call its ranks ask for that. No rank waits for another one, and where the store cannot be
    asked, training goes on.

    Compared is what a process enables first. Of what it enables later nothing says that all ranks have come as far: a
    demo or a self-test runs one after the other. Under MindSpeed one `enable` makes several passes, and may get another
    configuration in each: ranks are compared in what they have in a pass of one number, and those whose facts have been
    the same in all passes in any.
    """

    _PREFIX = "mindspeed_moe/launch"
    _LISTED = 64  # ranks at most that a message names
    _made: ClassVar[Any] = None  # the `enable` of this process whose plans are compared; None until one is in force
    _passes: ClassVar[list[dict[str, str | int]]] = []  # facts of its passes so far

    def __init__(self, facts: Facts) -> None:
        self._facts = dict(facts)
        self._enabling: object = None
        self._prefixes = [self._PREFIX]  # of keys: what is compared with what
        self._known: Any = lambda: None  # the store that was told; held, it would outlive its process group

    @classmethod
    def planned(cls, facts: Facts, enabling: object) -> LaunchAgreement | None:
        """Return one for a plan, None when something else was enabled first; `in_force` makes it count.

        enabling: stands for one `enable`, which may plan several times.
        """
        if cls._made and cls._made is not enabling:
            return None
        planned = cls(facts)
        planned._enabling = enabling
        return planned

    def in_force(self) -> None:
        """The plan's patches are in place."""
        kind = type(self)
        passes = [*kind._passes, self._facts] if kind._made is self._enabling else [self._facts]
        kind._made, kind._passes = self._enabling, passes
        if len(passes) > 1:
            always = [self._PREFIX] if all(one == self._facts for one in passes) else []
            self._prefixes = [*always, f"{self._PREFIX}/pass/{len(passes)}"]

    def add(self, facts: Facts) -> None:
        """What this rank has in addition."""
        self._facts |= facts

    def tell(self) -> None:
        """Tell once what this rank has; again when process groups were made anew, and not before there are any."""
        self._asking(lambda store: "")

    def difference(self) -> str:
        """Return how ranks that have told so far differ, or an empty string."""
        return self._asking(self.difference_in)

    def require(self) -> None:
        """Raise GroupError when ranks that have told so far differ."""
        difference = self.difference()
        if difference:
            raise GroupError(f"rank {dist.get_rank()}: {difference}")

    def _asking(self, ask: Callable[[Store], str]) -> str:
        """Return the answer of a store that knows what this rank has."""
        store = launch_store()
        if store is None:
            return ""
        try:
            if store is not self._known():
                self.tell_to(store, dist.get_rank())
                self._known = weakref.ref(store)
            return ask(store)
        except (RuntimeError, NotImplementedError) as error:  # gone with its host, or a store that cannot do as much
            log.once(logging.WARNING, f"ranks of different groups are not compared with each other: {error}", __name__)
            return ""

    def tell_to(self, store: Store, own_rank: int) -> None:
        """Put this rank's facts beside those of the first rank where they differ."""
        own = json.dumps({"rank": own_rank, "facts": self._facts}, sort_keys=True)
        for prefix in self._prefixes:
            first = json.loads(store.compare_set(f"{prefix}/first", "", own))
            if first["facts"] != self._facts:
                place = store.add(f"{prefix}/places", 1)
                store.set(f"{prefix}/{place}", own)
                store.add(f"{prefix}/different", 1)  # last: who reads it finds the place filled

    def difference_in(self, store: Store) -> str:
        """Return how ranks differ that have told this store, or an empty string."""
        return next(filter(None, (self._difference(store, prefix) for prefix in self._prefixes)), "")

    def _difference(self, store: Store, prefix: str) -> str:
        if not store.add(f"{prefix}/different", 0):
            return ""
        places = store.add(f"{prefix}/places", 0)
        listed = min(places, self._LISTED)
        keys = [f"{prefix}/first", *(f"{prefix}/{place}" for place in range(1, listed + 1))]
        reports = [json.loads(store.get(key)) for key in keys if store.check([key])]
        first, told = reports[0]["rank"], _told({report["rank"]: report["facts"] for report in reports})
        who = f"rank {first} came first; ranks that agree with it are not named"
        more = f"; and {places - listed} more differ" if places > listed else ""
        return f"the ranks of this launch disagree ({who}): {told}{more}"
