"""Whole benches of small layers in one process, on the Megatron that is installed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from mindspeed_moe.bench import megatron, session
from mindspeed_moe.bench.contestants import assemble
from mindspeed_moe.bench.session import run_bench
from mindspeed_moe.bench.shapes import Shape
from mindspeed_moe.cli import main
from mindspeed_moe.contract import generation_of
from mindspeed_moe.environment import probe_environment
from mindspeed_moe.errors import BenchError, PatchConflictError
from mindspeed_moe.preprocess import packed, sites
from mindspeed_moe.preprocess.attributes import Attributes
from mindspeed_moe.preprocess.counts import COUNTS

pytestmark = [pytest.mark.megatron, pytest.mark.once]

BLOCKS = ("counting", "exchange", "unpacking", "profiler", "empty", "unpacking_telemetry", "telemetry_16_layers")
HOOK = "_maybe_dtoh_and_synchronize"


def standing():
    """Everything that a bench replaces, or starts, as it is now."""
    dispatcher = megatron.token_dispatcher().MoEAlltoAllTokenDispatcher
    owners = [dist, torch.cuda, torch.Tensor, sites, dispatcher, megatron.mappings(), megatron.parallel_state()]
    found = {(owner.__name__, name): value for owner in owners for name, value in vars(owner).items()}
    found["process group"] = dist.is_initialized()
    found["threads"] = torch.get_num_threads()
    return found


@pytest.fixture(autouse=True)
def _everything_is_put_back():
    before = standing()
    yield
    after = standing()
    assert [name for name in {**before, **after} if after.get(name) is not before.get(name)] == []


def bench(*shapes, rounds=2, seed=0, threads=1):
    return run_bench(probe_environment(), shapes, rounds=rounds, seed=seed, threads=threads)


def test_one_document_on_standard_output(capsys):
    arguments = "--experts 8 --ep 2,16 --tp 2 --tokens 20 --topk 2 --mode dropless,pad --rounds 3 --seed 4 --json"
    assert main(["bench", *arguments.split()]) == 0
    data = json.loads(capsys.readouterr().out)
    assert set(data) == {"machine", "unit", "results", "left_out"}
    assert set(data["machine"]) == {
        *("mindspeed_moe", "megatron_core", "python", "torch", "numpy"),
        *("cpu", "cpu_capability", "threads", "load", "packed"),
    }
    assert data["machine"]["megatron_core"] == probe_environment().megatron_core.version
    assert [one["shape"]["mode"] for one in data["results"]] == ["dropless", "pad"]
    assert len(data["left_out"]) == 2
    for one in data["results"]:
        assert (one["processes"], one["rounds"], one["seed"]) == (1, 3, 4)
        assert list(one["implementations"]) == ["stock", "reference", "packed"]
        stock = one["implementations"]["stock"]["p50"]
        for spread in one["implementations"].values():
            assert 0 < spread["p20"] <= spread["p50"] <= spread["p80"]
            assert spread["ratio_to_stock"] == pytest.approx(stock / spread["p50"])
        assert one["read_map_once"]["p50"] > 0
    assert list(data["results"][0]["packed_blocks"]) == list(BLOCKS)
    assert data["results"][1]["packed_blocks"] == {}


@pytest.mark.parametrize("counts", ["sum", "byte_lanes"])
@pytest.mark.parametrize("exchange", ["all_gather", "all_to_all"])
def test_choices_of_packed(counts, exchange, capsys):
    arguments = f"--experts 8 --ep 2 --tokens 20 --topk 2 --rounds 1 --json --choice counts={counts}"
    assert main(["bench", *arguments.split(), "--choice", f"exchange={exchange}"]) == 0
    told = json.loads(capsys.readouterr().out)["machine"]["packed"]
    assert told.startswith(f"counts {counts}, exchange {exchange}, ")


def test_a_choice_that_cannot_be_had(capsys):
    assert main(["bench", "--choice", "counts=matmul"]) == 2
    assert "preprocess.counts: 'matmul' is not offered" in capsys.readouterr().err
    assert main(["bench", "--choice", "colour=red"]) == 2
    assert "colour" in capsys.readouterr().err


def test_a_table_on_standard_output(capsys):
    assert main(["bench", "--experts", "4", "--ep", "2", "--tokens", "10", "--topk", "1", "--rounds", "2"]) == 0
    told = capsys.readouterr()
    assert "E=4 EP=2 TP=1 T=10 top-1 dropless; simulated group; 2 rounds" in told.out
    assert all(name in told.out for name in ("stock", "reference", "packed: counting", "reading the map once"))
    assert "mindspeed-moe" not in told.err
    assert "shapes" not in told.err, "the progress bar is for terminals"


@pytest.mark.parametrize("mode", ["dropless", "drop", "pad"])
@pytest.mark.parametrize(("ep", "tp"), [(1, 1), (1, 2), (4, 1), (2, 3), (8, 1)])
def test_all_implementations_agree_in_every_mode(ep, tp, mode):
    """The bench checks it itself; that the check can fail is the next test's business."""
    (result,) = bench(Shape(8, ep, tp, 30, 2, mode)).results
    assert set(result.implementations) == {"stock", "reference", "packed"}


@pytest.mark.parametrize(
    ("field", "attribute"),
    [
        ("input_splits", "input_splits"),
        ("output_splits", "output_splits"),
        ("output_splits_tp", "output_splits_tp"),
        ("tokens_per_local_expert", "tokens_per_expert"),
        ("chunk_table", None),  # whatever the installed release calls it
    ],
)
def test_a_wrong_implementation_is_an_error(monkeypatch, field, attribute):
    real = packed.split_plan
    attribute = attribute or generation_of(str(probe_environment().megatron_core.version)).chunk_table

    def wrong(*arguments):
        plan = real(*arguments)
        change = {field: getattr(plan, field) + 1}
        return plan._replace(**change) if hasattr(plan, "_replace") else replace(plan, **change)

    monkeypatch.setattr(packed, "split_plan", wrong)
    with pytest.raises(BenchError, match=f"disagree: packed leaves {attribute} = "):
        bench(Shape(8, 2, 2, 30, 2, "dropless"))


def test_wrong_rows_are_an_error(monkeypatch):
    """They are known before the counts are, and not taken from the plan."""
    known = Attributes.known_out_tokens
    monkeypatch.setattr(Attributes, "known_out_tokens", lambda *given: known(*given) + 1)
    with pytest.raises(BenchError, match="packed leaves num_out_tokens = 61; stock 60"):
        bench(Shape(8, 2, 2, 30, 2, "dropless"))


def test_counting_wrong_is_found_where_it_is_sent(monkeypatch):
    def wrong(routing_map, out, entries):
        out.fill_(3)

    monkeypatch.setitem(COUNTS, "byte_lanes", wrong)
    with pytest.raises(BenchError, match="all_to_all_single was given"):
        bench(Shape(8, 2, 2, 30, 2, "dropless"))


def test_an_implementation_that_fails_leaves_nothing_behind(monkeypatch):
    def fail(*arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(packed, "split_plan", fail)
    with pytest.raises(ZeroDivisionError):  # and the fixture compares
        bench(Shape(8, 2, 2, 30, 2, "dropless"), threads=2)


def test_a_failure_while_timing_leaves_nothing_behind(monkeypatch):
    def fail(*arguments):
        raise ZeroDivisionError

    monkeypatch.setattr("mindspeed_moe.bench.measure.interleave", fail)
    with pytest.raises(ZeroDivisionError):
        bench(Shape(8, 2, 2, 30, 2, "dropless"))


def test_somebody_elses_patch_is_not_measured(monkeypatch):
    dispatcher = megatron.token_dispatcher().MoEAlltoAllTokenDispatcher
    monkeypatch.setattr(dispatcher, "preprocess", lambda self, routing_map: None)
    with pytest.raises(PatchConflictError, match="preprocess is patched already"):
        bench(Shape(8, 2, 2, 30, 2, "dropless"))
    monkeypatch.undo()


def test_a_process_that_belongs_to_a_world_is_refused(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(dist, "is_initialized", lambda: True)
        with pytest.raises(BenchError, match="a process of its own"):
            bench(Shape(8, 2, 2, 30, 2, "dropless"))


def test_what_is_measured_is_what_enable_would_patch_in():
    dispatcher = megatron.token_dispatcher().MoEAlltoAllTokenDispatcher
    with assemble(probe_environment()) as team:
        stock, ours = team.classes["stock"], team.classes["packed"]
        hooked = hasattr(dispatcher, HOOK)
        methods = ("preprocess", HOOK) if hooked else ("preprocess",)
        assert all(getattr(stock, name) is vars(dispatcher)[name] for name in methods)
        for name in methods:
            assert getattr(ours, name).__wrapped__ is vars(dispatcher)[name]
            home = "alltoall" if hooked else "alltoall_inline"
            assert getattr(ours, name).__globals__["__name__"] == f"mindspeed_moe.patches.{home}"
        assert team.packed.implementation == "packed"


def test_watching_a_sweep():
    seen = []

    def watch(shapes):
        for shape in shapes:
            seen.append(shape)
            yield shape

    shapes = (Shape(4, 2, 1, 5, 1, "dropless"), Shape(4, 1, 1, 5, 1, "pad"))
    report = session.run_bench(probe_environment(), shapes, rounds=1, seed=0, threads=1, watch=watch)
    assert seen == list(shapes) == [one.shape for one in report.results]
