"""Ranks that disagree on the expert layout would hang in the first collective: find out before it, by name.

Each dispatcher's first exchange is preceded by one comparison through the process group's key-value store, so
the steps themselves carry no extra collective. Dispatchers reach their first exchange in the same order on all
ranks (collectives must), so the n-th comparison in a group concerns the same layer everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from mindspeed_moe.errors import GroupError

Store = Any  # torch.distributed.Store, which not every build of torch has
Facts = Mapping[str, str | int]

# The first rank may begin to wait later than the others; its verdict names the silent rank, so they wait for it.
_HEAD_START = timedelta(seconds=30)


def require_agreement(group: dist.ProcessGroup, facts: Facts) -> None:
    """Compare `facts` over the ranks of a process group, within the timeout of its store.

    Raises GroupError on every rank when they differ anywhere, or when a rank does not report in time.
    """
    store: Store = dist.distributed_c10d._get_default_store()
    ranks = tuple(dist.get_process_group_ranks(group))
    compare(store, ranks, dist.get_rank(), facts, store.timeout)


def compare(store: Store, ranks: tuple[int, ...], own_rank: int, facts: Facts, timeout: timedelta) -> None:
    """Compare `facts` through a store; the first rank of the group reads all, the others read its verdict.

    ranks: global ranks of the group in group order. own_rank: this process's global rank.
    Raises GroupError on every rank when the facts differ anywhere, or when a rank does not report in time.
    """
    members = f"mindspeed_moe/{','.join(map(str, ranks))}"
    # Counted in the store itself: it outlives disable() and enable(), and a new store starts afresh.
    prefix = f"{members}/{store.add(f'{members}/turns/{own_rank}', 1)}"
    store.set(f"{prefix}/{own_rank}", json.dumps(dict(facts), sort_keys=True))
    verdict_key = f"{prefix}/verdict"
    if own_rank == ranks[0]:
        store.set(verdict_key, _judge(store, prefix, ranks, timeout))
    try:
        store.wait([verdict_key], timeout + min(timeout, _HEAD_START))
        verdict = store.get(verdict_key).decode()
    except RuntimeError as error:
        raise GroupError(
            f"rank {own_rank}: rank {ranks[0]} gave no verdict on the expert layout within {timeout}: "
            f"is the plugin enabled there, and the process alive? ({error})"
        ) from error
    if verdict:
        raise GroupError(f"rank {own_rank}: {verdict}")


def _judge(store: Store, prefix: str, ranks: tuple[int, ...], timeout: timedelta) -> str:
    """Return what is wrong, or an empty string."""
    keys = [f"{prefix}/{rank}" for rank in ranks]
    try:
        store.wait(keys, timeout)
    except RuntimeError as error:
        silent = [rank for rank, key in zip(ranks, keys, strict=True) if not store.check([key])]
        return (
            f"ranks {silent} of the TPxEP group {list(ranks)} did not report their expert layout within {timeout}: "
            f"is the plugin enabled there, and are the processes alive? ({error})"
        )
    reports = {rank: json.loads(store.get(key)) for rank, key in zip(ranks, keys, strict=True)}
    different = []
    for fact in dict.fromkeys(fact for report in reports.values() for fact in report):
        by_value: dict[object, list[int]] = {}
        for rank, report in reports.items():
            by_value.setdefault(report.get(fact), []).append(rank)
        if len(by_value) > 1:
            told = "; ".join(f"{value!r} on ranks {who}" for value, who in by_value.items())
            different.append(f"{fact}: {told}")
    if not different:
        return ""
    return f"the ranks of the TPxEP group {list(ranks)} disagree: " + " | ".join(different)
