"""`verify` on real processes: nothing of training changes, and a mistake ends it on every rank, with what was wrong."""

from __future__ import annotations

import importlib
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from distributed.launcher import RankPool, World
from distributed.layers import ALLTOALL, SEQ, Layer, has_sequence_dispatcher, router_padding, waits_in_a_hook
from distributed.verified import go_on_after_it, make_a_mistake, same_as_stock
from mindspeed_moe import cli

pytestmark = pytest.mark.megatron

MODES = ("dropless", "drop", "pad", "router padding")
CASES = ((1, 2, "dropless"), *((2, 2, mode) for mode in MODES), (1, 4, "drop"), (1, 4, "pad"))  # TP, EP
BOTH = ("all_to_all", "all_gather")
ONE = ("all_to_all",)
GATHER = "c10d::_allgather_base_"  # of the reference: one a verified call
SPLITS = {"input_splits", "output_splits", "output_splits_tp"}
EVERYTHING = {"num_out_tokens", *SPLITS, "chunk table", "tokens_per_local_expert"}

_numbers = itertools.count()


def require_stock(
    ranks: RankPool, layer: Layer, *, run: str = "layer", verify: Any = "always", exchanges: Any = BOTH
) -> list[dict[str, Any]]:
    """AssertionError unless all is as under stock on every rank, in one order of collectives; returns the findings."""
    found = ranks.run(same_as_stock, layer, run, verify, exchanges, world=World(layer.ep, layer.tp))
    for rank, of_rank in enumerate(found):
        for exchange, one in of_rank.items():
            assert one["differences"] == [], f"{exchange}, rank {rank}"
            assert one["random"], f"{exchange}, rank {rank}: a random state has changed"
            assert sum(one["compared"].values()) > 0
            # Megatron gathers over TP in one of two ways, by the numbers of tokens there.
            peer = rank - rank % layer.tp if layer.tp > 1 else 0
            assert one["order"] == found[peer][exchange]["order"], f"{exchange}: ranks {peer} and {rank} differ"
    return [one for of_rank in found for one in of_rank.values()]


def extra_gathers(one: dict[str, Any]) -> int:
    """How many collectives verification adds, when it adds nothing but the reference's; else an AssertionError."""
    rest = list(one["without"])
    extra = 0
    for name in one["order"]:
        if rest and name == rest[0]:
            rest.pop(0)
        else:
            assert name == GATHER, f"{name} is of nobody"
            extra += 1
    assert rest == [], "a collective of training is missing, or has another place"
    return extra


@pytest.mark.parametrize(("tp", "ep", "mode"), CASES)
def test_layer(ranks: RankPool, tp: int, ep: int, mode: str) -> None:
    if mode == "router padding" and not router_padding():
        pytest.skip("this release has no router padding")
    tokens = ((16, 24),) * 4 if mode == "router padding" else ((8, 5),) * 4
    exchanges = BOTH if tp == ep else ONE
    for one in require_stock(ranks, Layer(ep, tp, 2 * ep, 2, mode, tokens), exchanges=exchanges):
        assert one["calls"] == 2
        assert extra_gathers(one) == (0 if mode == "pad" else 2)
        names = one["compared"].keys()
        if mode != "pad":
            assert names >= EVERYTHING, "everything that a consumer reads"
        else:
            assert names >= {"capacity", "num_out_tokens", "chunk table", "tokens_per_local_expert"}


def test_a_rank_without_peers(ranks: RankPool) -> None:
    for one in require_stock(ranks, Layer(1, 1, 2, 1), exchanges=ONE):
        assert extra_gathers(one) == 0
        assert one["compared"].keys() >= EVERYTHING, "that there are no splits is compared too"


@pytest.mark.parametrize(("verify", "verified"), [("first", 2), ({"every": 2}, 2), ({"every": 3}, 1)])
def test_some_calls_only(ranks: RankPool, verify: Any, verified: int) -> None:
    """Two micro-batches, run again in backward: four calls, of which the reference sees some."""
    layer = Layer(2, 2, 4, 2, recompute=True)
    for one in require_stock(ranks, layer, verify=verify, exchanges=ONE):
        assert one["calls"] == 4
        assert extra_gathers(one) == one["told"]["calls"] == (verified if verify != {"every": 3} else 2)
        assert one["told"]["layers"] == 1


@pytest.mark.parametrize(("tp", "ep", "overlap"), [(1, 4, False), (2, 2, False), (2, 2, True)])
def test_recomputed_and_overlapped(ranks: RankPool, tp: int, ep: int, overlap: bool) -> None:
    layer = Layer(ep, tp, 2 * ep, 2, tokens=((8, 5),) * 4, recompute=not overlap, overlap=overlap)
    for one in require_stock(ranks, layer, exchanges=ONE):
        assert extra_gathers(one) == one["calls"] == (2 if overlap else 4)


@pytest.mark.parametrize("mode", ["dropless", "drop"])
def test_stages_apart(ranks: RankPool, mode: str) -> None:
    from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher

    if not hasattr(MoEAlltoAllTokenDispatcher, "token_dispatch"):
        pytest.skip("this release has no stages")
    for one in require_stock(ranks, Layer(2, 2, 4, 2, mode), run="stages", exchanges=ONE):
        assert extra_gathers(one) == one["calls"] == 3


def test_padding_switched_on_and_off(ranks: RankPool) -> None:
    if not hasattr(importlib.import_module("megatron.core.inference.utils"), "set_decode_expert_padding"):
        pytest.skip("inference of this release switches no padding")
    for one in require_stock(ranks, Layer(2, 2, 4, 2), run="padding", exchanges=ONE):
        assert one["calls"] == 6
        assert extra_gathers(one) == 3, "padding needs no counts"


@pytest.mark.parametrize("mode", ["dropless", "drop", "pad"])
@pytest.mark.parametrize(("tp", "ep"), [(1, 4), (2, 2)])
def test_sequence_dispatcher(ranks: RankPool, tp: int, ep: int, mode: str) -> None:
    if not has_sequence_dispatcher():
        pytest.skip("this release has no alltoall_seq")
    experts = ep if mode == "pad" else 2 * ep  # stock's own padding fails with TP and several local experts
    layer = Layer(ep, tp, experts, 2, mode, ((8, 5),) * 4, dispatcher=SEQ)
    for one in require_stock(ranks, layer, exchanges=ONE):
        assert extra_gathers(one) == (0 if mode == "pad" else 2)
        if mode != "pad":
            assert one["compared"].keys() >= EVERYTHING - {"output_splits_tp"}
            assert "output_splits_tp" not in one["compared"], "nobody reads it there"


# ------------------------------------------------------------------------------------------------------ mistakes

FAILED = re.compile(
    r"verification failed on rank (?P<rank>\d), layer (?P<layer>\d), training step (?P<step>\d), "
    r"micro-batch (?P<micro_batch>\d) \(call (?P<call>\d) of the layer\): "
    r"(?P<difference>(?P<name>[^\[:]+)(\[[\d, ]+\])?: found \w+, expected [\w \[\]]+)(?P<why> \(it gave up: .*\))?; "
    r"implementation packed, all_to_all; "
)
LAYER = Layer(2, 2, 4, 2)
# mistake -> layer, training step and micro-batch in which it first matters, and what is wrong then
FIRST = {
    "wrong_peer": (1, 0, 0, {"output_splits", "output_splits_tp", "chunk table"}),
    "send_order_swapped": (1, 0, 0, {"output_splits"}),
    "received_order_swapped": (1, 0, 0, {"output_splits"}),
    "collective_on_the_wrong_group": (1, 0, 0, {"output_splits", "output_splits_tp"}),
    "wrong_number_of_rows": (1, 0, 0, {"num_out_tokens"}),
    "reused_buffer": (1, 0, 1, {"input_splits that call 0 handed out"}),
    "counts_too_large": (1, 0, 0, {"input_splits"}),
}


def make(ranks: RankPool, mistake: str, dumps: Path, verify: Any = "always") -> list[Any]:
    world = World(LAYER.ep, LAYER.tp, name=f"verify {next(_numbers)}")
    return ranks.run(make_a_mistake, LAYER, mistake, str(dumps), verify, world=world)


def replayed(capsys: pytest.CaptureFixture[str], *dumps: Path) -> tuple[int, dict[int, dict[str, Any]]]:
    """Return the exit code, and what the dumps of each rank show."""
    code = cli.main(["replay", "--json", *map(str, dumps)])
    (call,) = json.loads(capsys.readouterr().out)["calls"]
    return code, {one.pop("rank"): one for one in call["ranks"]}


def as_told(one: dict[str, Any]) -> str:
    """As a message says it."""
    at = f"{one['index']}" if one["index"] else ""
    return f"{one['attribute']}{at}: found {one['found']}, expected {one['expected']}"


@pytest.mark.parametrize("mistake", FIRST)
def test_a_mistake_on_every_rank_is_caught_where_it_first_matters_and_replayed(
    ranks: RankPool, tmp_path: Path, capsys: pytest.CaptureFixture[str], mistake: str
) -> None:
    if mistake == "wrong_number_of_rows" and not waits_in_a_hook(ALLTOALL):
        pytest.skip("one mistake of this kind is enough, and 0.10 has no fused kernels to read it")
    layer, step, micro_batch, names = FIRST[mistake]
    found = make(ranks, mistake, tmp_path / "dumps")
    assert [one.error for one in found] == ["VerificationError"] * 4, "no rank goes on"
    failed = [match for one in found if (match := FAILED.match(one.message))]
    assert failed, found
    files = {int(one.stem[-5:]): one for one in (tmp_path / "dumps").iterdir()}
    assert sorted(files) == [0, 1, 2, 3], "every rank of the group leaves a dump"
    from_all = replayed(capsys, tmp_path / "dumps")
    assert from_all[0] == 0
    for match in failed:
        told = match.groupdict()
        assert (int(told["layer"]), int(told["step"]), int(told["micro_batch"])) == (layer, step, micro_batch)
        assert told["name"] in names
        assert bool(told["why"]) == (mistake == "counts_too_large")
        rank, difference = int(told["rank"]), told["difference"]
        one = from_all[1][rank]
        assert as_told(one["recorded"]) == as_told(one["against_maps"]) == difference
        assert as_told(replayed(capsys, files[rank])[1][rank]["recorded"]) == difference, "from one dump"
        # The layout of the buffers is this version's code, and wrong on a laptop too while the mistake is in it.
        assert all(one["reference"] is None and one["code"] is None for one in from_all[1].values())


def test_a_folder_that_cannot_be_written_does_not_hide_the_difference(ranks: RankPool, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = make(ranks, "wrong_peer", tmp_path / "file" / "dumps")
    assert [one.error for one in found] == ["VerificationError"] * 4
    for one in found:
        assert FAILED.search(one.message)
        assert f"; no dump could be written to {tmp_path / 'file' / 'dumps'}" in one.message
        assert "Not a directory" in one.message
    assert [one.name for one in tmp_path.iterdir()] == ["file"], "nothing is left anywhere else"


def test_training_does_not_go_on_when_somebody_catches_the_error(ranks: RankPool, tmp_path: Path) -> None:
    """`first` verifies no call after the second: it is the failure itself that is kept."""
    world = World(LAYER.ep, LAYER.tp, name=f"verify {next(_numbers)}")
    for outcomes, dumps in ranks.run(go_on_after_it, LAYER, str(tmp_path / "dumps"), world=world):
        assert [one.error for one in outcomes] == ["VerificationError"] * 4
        assert len({one.message for one in outcomes}) == 1
        assert dumps == 1, "however often it is called"
