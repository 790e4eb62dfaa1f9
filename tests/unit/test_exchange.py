"""The exchange's buffer, with numbers to check by hand, and a simulated group around its collective."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist

from mindspeed_moe.preprocess.exchange import EXCHANGES, AllGather, AllToAll, Exchange, NoExchange, make_exchange
from mindspeed_moe.preprocess.layout import ExpertLayout

# EP = 2, TP = 2, four experts. This rank is (ep 1, tp 0), number 2 of the group; it owns experts 2 and 3.
LAYOUT = ExpertLayout(num_experts=4, ep_size=2, tp_size=2, ep_rank=1, tp_rank=0)
ALONE = ExpertLayout(num_experts=3, ep_size=1, tp_size=1, ep_rank=0, tp_rank=0)
NO_TP = ExpertLayout(num_experts=4, ep_size=2, tp_size=1, ep_rank=0, tp_rank=0)


def numbered(exchange: Exchange) -> torch.Tensor:
    """A buffer whose words are 0, 1, 2, ..."""
    return torch.arange(exchange.length, dtype=torch.int32)


def test_without_peers_what_is_counted_is_what_is_received() -> None:
    exchange = NoExchange(ALONE)
    assert exchange.length == 3
    assert exchange.received(numbered(exchange)).tolist() == [[[0, 1, 2]]]


def test_all_to_all_without_tp_sends_the_counts_themselves() -> None:
    exchange = AllToAll(NO_TP)
    assert exchange.length == 4 + 2 * 2  # E counts, then L from each of EP ranks
    assert exchange.received(numbered(exchange)).tolist() == [[[4, 5]], [[6, 7]]]


def test_all_to_all_with_tp_has_a_send_area_between() -> None:
    exchange = AllToAll(LAYOUT)
    assert exchange.length == 4 + 8 + 8  # E counts, EP * TP * L to send, as many received
    assert exchange.received(numbered(exchange)).tolist() == [[[12, 13], [14, 15]], [[16, 17], [18, 19]]]


def test_all_gather_reads_the_own_columns() -> None:
    exchange = AllGather(LAYOUT)
    assert exchange.length == 4 + 4 * 4  # E counts, then E of each rank
    # The ranks' counts start at 4, 8, 12 and 16; experts 2 and 3 are their third and fourth.
    assert exchange.received(numbered(exchange)).tolist() == [[[6, 7], [10, 11]], [[14, 15], [18, 19]]]


@pytest.mark.parametrize("name", EXCHANGES)
def test_what_is_received_is_a_view_of_the_buffer(name: str) -> None:
    exchange = make_exchange(name, LAYOUT)
    buffer = numbered(exchange)
    buffer[LAYOUT.num_experts :] = -1
    assert set(exchange.received(buffer).flatten().tolist()) == {-1}


def test_without_peers_every_exchange_is_none() -> None:
    assert {type(make_exchange(name, ALONE)) for name in EXCHANGES} == {NoExchange}
    assert type(make_exchange("all_gather", LAYOUT)) is AllGather
    assert type(make_exchange("all_to_all", LAYOUT)) is AllToAll
    with pytest.raises(KeyError):
        make_exchange("all_reduce", LAYOUT)


def test_what_all_to_all_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts 5, 6, 7, 8: both TP ranks of ep 0 get those of experts 0 and 1, both of ep 1 those of 2 and 3."""
    sent: list[list[int]] = []
    monkeypatch.setattr(dist, "all_to_all_single", lambda out, source, group: sent.append(source.tolist()))
    exchange = AllToAll(LAYOUT)
    buffer = numbered(exchange)
    buffer[:4] = torch.tensor([5, 6, 7, 8])
    exchange.run(buffer, "group")  # type: ignore[arg-type]
    assert sent == [[5, 6, 5, 6, 7, 8, 7, 8]]
    assert buffer[:4].tolist() == [5, 6, 7, 8]


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
        exchange = make_exchange(name, ExpertLayout(experts, ep, tp, ep_rank, tp_rank))
        buffer = torch.full((exchange.length,), -1, dtype=torch.int32)
        buffer[:experts] = 100 * rank + torch.arange(experts)
        exchange.run(buffer, group)  # type: ignore[arg-type]
        ranks.append((ep_rank, exchange, buffer))
    group.finish()
    for rank, (ep_rank, exchange, buffer) in enumerate(ranks):
        own = range(ep_rank * local, (ep_rank + 1) * local)
        expected = [[[100 * (i * tp + k) + expert for expert in own] for k in range(tp)] for i in range(ep)]
        assert exchange.received(buffer).tolist() == expected
        assert buffer[:experts].tolist() == [100 * rank + expert for expert in range(experts)]


def test_without_peers_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "all_to_all_single", None)
    monkeypatch.setattr(dist, "all_gather_into_tensor", None)
    exchange = make_exchange("all_to_all", ALONE)
    buffer = numbered(exchange)
    exchange.run(buffer, None)  # type: ignore[arg-type]
    assert buffer.tolist() == [0, 1, 2]
