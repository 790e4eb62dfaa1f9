"""The bench passes a dispatcher's points as a layer does: in order, each value where it is first read."""

from __future__ import annotations

import pytest
import torch

from mindspeed_moe.bench import points
from mindspeed_moe.bench.points import POINTS, pass_points

TABLE = "table"


class Hooked:
    """Waits in a hook, as from 0.12 on."""

    def __init__(self, seen):
        self.seen = seen

    def _maybe_dtoh_and_synchronize(self, point, counts):
        self.seen.append(point)
        return counts + 1


class Inline:
    """Waits by itself when asked for a value, as the plugin's attributes do in 0.10 and 0.11."""

    def __init__(self, seen, *, point, local=2, tp=2):
        self.cuda_sync_point, self.num_local_experts, self.tp_size = point, local, tp
        self.seen = seen

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        self.seen.append(name)
        return


@pytest.fixture
def seen(monkeypatch):
    found = []

    class Stream:
        def synchronize(self):
            found.append("wait")

    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    return found


def test_the_hook_is_called_at_every_point(seen):
    assert pass_points(Hooked(seen), 0, TABLE) == 4
    assert tuple(seen) == POINTS


@pytest.mark.parametrize(
    ("point", "order"),
    [
        ("before_permutation_1", ["wait", "num_out_tokens", "splits", TABLE]),
        ("before_ep_alltoall", ["num_out_tokens", "wait", "splits", TABLE]),
        ("before_finish", ["num_out_tokens", "splits", TABLE, "wait"]),
        ("no_sync", ["num_out_tokens", "splits", TABLE]),
    ],
)
def test_without_a_hook_values_are_read_in_the_order_of_dispatching(seen, point, order):
    counts = object()
    assert pass_points(Inline(seen, point=point), counts, TABLE) is counts
    splits = ["output_splits", "input_splits", "output_splits_tp"]
    assert seen == [name for one in order for name in (splits if one == "splits" else [one])]


def test_what_dispatching_does_not_read_is_not_read(seen):
    pass_points(Inline(seen, point="no_sync", local=1, tp=1), None, TABLE)
    assert seen == ["num_out_tokens", "output_splits", "input_splits"]


def test_the_points_are_the_adapters():
    assert points.POINTS == ("before_permutation_1", "before_ep_alltoall", "before_permutation_2", "before_finish")
