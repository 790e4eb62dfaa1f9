"""The exchange's buffer, with numbers to check by hand, and a simulated group around its collective."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist

from mindspeed_moe.preprocess.exchange import EXCHANGES, AllGather, AllToAll, Exchange
from mindspeed_moe.preprocess.layout import ExpertLayout

# EP = 2, TP = 2, four experts. This rank is (ep 1, tp 0), number 2 of the group; it owns experts 2 and 3.
LAYOUT = ExpertLayout(num_experts=4, ep_size=2, tp_size=2, ep_rank=1, tp_rank=0)
NO_TP = ExpertLayout(num_experts=4, ep_size=2, tp_size=1, ep_rank=0, tp_rank=0)


def numbered(exchange: Exchange) -> torch.Tensor:
    """A buffer whose words are 0, 1, 2, ..."""
    return torch.arange(exchange.length, dtype=torch.int32)


def rows(exchange: Exchange) -> list[list[int]]:
    """What the host makes of a numbered buffer."""
    return exchange.reader(exchange.views(numbered(exchange)).read.numpy())().tolist()


def test_all_to_all_without_tp_sends_the_counts_themselves() -> None:
    exchange = AllToAll(NO_TP)
    assert exchange.length == 4 + 2 * 2  # E counts, then L from each of EP ranks
    views = exchange.views(numbered(exchange))
    assert views.repeated is None
    assert views.sent is views.counts
    assert views.received.tolist() == [[[4, 5]], [[6, 7]]]
    assert views.read.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert rows(exchange) == [[0, 1], [2, 3], [4, 5], [6, 7]]  # sent to ep 0 and ep 1, received from them


def test_all_to_all_with_tp_has_a_send_area_that_the_host_does_not_read() -> None:
    exchange = AllToAll(LAYOUT)
    assert exchange.length == 8 + 4 + 8  # EP * TP * L to send, E counts, as many received as sent
    views = exchange.views(numbered(exchange))
    assert views.counts.tolist() == [8, 9, 10, 11]
    assert views.received.tolist() == [[[12, 13], [14, 15]], [[16, 17], [18, 19]]]
    assert views.read.tolist() == list(range(8, 20))
    assert rows(exchange) == [[8, 9], [10, 11], [12, 13], [14, 15], [16, 17], [18, 19]]


def test_all_gather_reads_the_own_columns() -> None:
    exchange = AllGather(LAYOUT)
    assert exchange.length == 4 + 4 * 4  # E counts, then E of each rank
    # The ranks' counts start at 4, 8, 12 and 16; experts 2 and 3 are their third and fourth. This rank is the third.
    assert exchange.views(numbered(exchange)).received.tolist() == [[[6, 7], [10, 11]], [[14, 15], [18, 19]]]
    assert rows(exchange) == [[12, 13], [14, 15], [6, 7], [10, 11], [14, 15], [18, 19]]


@pytest.mark.parametrize("name", EXCHANGES)
def test_views_share_the_buffer_and_rows_do_not(name: str) -> None:
    exchange = EXCHANGES[name](LAYOUT)
    buffer = numbered(exchange)
    views = exchange.views(buffer)
    read = exchange.reader(views.read.numpy())
    before = read()
    buffer.fill_(-1)
    assert set(views.received.flatten().tolist()) == {-1}
    assert before.min() >= 0
    assert before.dtype == "int64"
    assert set(read().ravel().tolist()) == {-1}


@pytest.mark.parametrize("name", EXCHANGES)
def test_the_host_reads_one_contiguous_run_that_the_collective_wrote(name: str) -> None:
    for layout in (LAYOUT, NO_TP):
        exchange = EXCHANGES[name](layout)
        views = exchange.views(numbered(exchange))
        assert views.read.is_contiguous()
        assert views.read.tolist()[-len(views.written) :] == views.written.tolist()


def test_what_all_to_all_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts 5, 6, 7, 8: both TP ranks of ep 0 get those of experts 0 and 1, both of ep 1 those of 2 and 3."""
    sent: list[list[int]] = []
    monkeypatch.setattr(dist, "all_to_all_single", lambda out, source, group: sent.append(source.tolist()))
    exchange = AllToAll(LAYOUT)
    views = exchange.views(numbered(exchange))
    views.counts[:] = torch.tensor([5, 6, 7, 8])
    exchange.run(views, "group")  # type: ignore[arg-type]
    assert sent == [[5, 6, 5, 6, 7, 8, 7, 8]]
    assert views.counts.tolist() == [5, 6, 7, 8]


class Group:
    """A group whose ranks run one after the other: collectives are written down, then carried out for all."""

    def __init__(self, size: int) -> None:
        self.size, self.calls = size, []  # type: ignore[var-annotated]

    def all_to_all_single(self, out: torch.Tensor, source: torch.Tensor, group: Any) -> None:
        assert group is self
        self.calls.append(("all_to_all", out, source))

    def all_gather_into_tensor(self, out: torch.Tensor, source: torch.Tensor, group: Any) -> None:
        assert group is self
        self.calls.append(("all_gather", out, source))

    def finish(self) -> None:
        assert len(self.calls) == self.size, "one collective on every rank"
        ((name),) = {name for name, _, _ in self.calls}
        sources = [source.clone() for _, _, source in self.calls]
        for rank, (_, out, _) in enumerate(self.calls):
            parts = [source.tensor_split(self.size)[rank] for source in sources]
            out.copy_(torch.cat(parts if name == "all_to_all" else sources))


@pytest.mark.parametrize("name", EXCHANGES)
@pytest.mark.parametrize(("ep", "tp", "local"), [(2, 1, 1), (2, 1, 3), (1, 2, 2), (2, 2, 2), (3, 2, 1), (4, 3, 2)])
def test_every_rank_receives_the_counts_of_its_experts(
    monkeypatch: pytest.MonkeyPatch, name: str, ep: int, tp: int, local: int
) -> None:
    """Rank r counts 100 * r + e tokens for expert e, so that every number tells where it comes from."""
    experts, group = ep * local, Group(ep * tp)
    monkeypatch.setattr(dist, "all_to_all_single", group.all_to_all_single)
    monkeypatch.setattr(dist, "all_gather_into_tensor", group.all_gather_into_tensor)
    ranks = []
    for rank, (ep_rank, tp_rank) in enumerate(product(range(ep), range(tp))):
        exchange = EXCHANGES[name](ExpertLayout(experts, ep, tp, ep_rank, tp_rank))
        views = exchange.views(torch.full((exchange.length,), -1, dtype=torch.int32))
        views.counts[:] = 100 * rank + torch.arange(experts)
        exchange.run(views, group)  # type: ignore[arg-type]
        ranks.append((ep_rank, exchange, views))
    group.finish()
    for rank, (ep_rank, exchange, views) in enumerate(ranks):
        own = range(ep_rank * local, (ep_rank + 1) * local)
        expected = [[[100 * (i * tp + k) + expert for expert in own] for k in range(tp)] for i in range(ep)]
        assert views.received.tolist() == expected
        counts = [[100 * rank + expert for expert in range(to * local, (to + 1) * local)] for to in range(ep)]
        received = [row for from_ep in expected for row in from_ep]
        assert exchange.reader(views.read.numpy())().tolist() == counts + received
