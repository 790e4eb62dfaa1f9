"""`mindspeed-moe selftest` on the simulated npu: it passes, notices mistakes and faults by name, and never hangs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from helpers_process import torchrun
from npu.launch import run_ranks
from npu.mutations import EP_TP

pytestmark = [pytest.mark.simulated, pytest.mark.megatron]

_TOO_EARLY = "behind before_ep_alltoall: input_splits[0]: found"
_GIVEN_UP = "a call given up on one rank: behind before_ep_alltoall: output_splits[0]: found"
# What is told of a mistake: where, and which attribute is wrong; or what else is.
TOLD = {
    "event_not_waited_for": _TOO_EARLY,
    "event_recorded_before_the_copy": _TOO_EARLY,
    "event_on_the_wrong_stream": _TOO_EARLY,
    "event_on_the_stream_that_was_current": _TOO_EARLY,
    "side_stream_does_not_wait": _TOO_EARLY,
    "waited_for_after_the_first_read": "behind before_ep_alltoall: input_splits: found None",
    "pageable_target": "go to pageable memory",
    "one_slot_for_all_layers": "behind before_ep_alltoall: output_splits[0]: found",
    "one_device_buffer_for_all_slots": "behind before_ep_alltoall: output_splits[0]: found",
    "buffer_of_a_slot_handed_out": "read again at the end: chunk_table",
    "counts_handed_out_before_the_wait": "handed out before the wait: tokens_per_local_expert",
    "slot_free_when_its_call_is_given_up": _GIVEN_UP,
    "slot_taken_before_its_copy_is_done": _GIVEN_UP,
    "tensors_of_a_given_up_call_dropped": "memory of a call that was given up was written to after",
    "send_order_swapped": "behind before_ep_alltoall: output_splits[0]: found",
    "received_order_swapped": "behind before_ep_alltoall: output_splits[1]: found",
    "collective_on_the_wrong_group": "behind before_permutation_2: output_splits_tp[1]: found",
}


@pytest.mark.parametrize("where", [pytest.param(one, marks=pytest.mark.slow) if one != "ep2" else one for one in EP_TP])
def test_every_mistake_fails_by_name_and_the_code_as_it_is_passes(tmp_path: Path, where: str) -> None:
    ep, tp, known = EP_TP[where]
    names = {stream: ["", *mutations] for stream, mutations in known.items()}
    found = run_ranks("selftest", ep * tp, tmp_path, arguments={"where": where, "names": names})
    assert found[1:] == found[:-1], "all ranks come to the same verdict"
    for stream, by_name in found[0].items():
        for name, problems in by_name.items():
            assert bool(problems) == bool(name), f"{stream}, {name}: {problems[:3]}"
            assert all(problem.startswith(f"EP {ep}, TP {tp}, L 2; alltoall; dropless") for problem in problems)
            if name:
                assert any(TOLD[name] in problem for problem in problems), f"{stream}, {name}: {problems[:3]}"


def launch(*arguments: str, npus: int, fault: str = "", seed: int = 0, **variables: str) -> tuple[int, str]:
    """Run the command on simulated npus; returns exit code and what it printed."""
    simulated = [sys.executable, "-m", "tests.ascend_sim", f"--npus={npus}", f"--seed={seed}"]
    simulated += [f"--fault={fault}"] if fault else []
    # 0.18 and later compile small functions; the simulation has no compiler
    command = ["-m", "mindspeed_moe", "selftest", "--device=npu", *arguments]
    return torchrun(command, ranks=npus, before=simulated, TORCHDYNAMO_DISABLE="1", **variables)


def test_four_npus_pass(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    code, told = launch("--only=EP 2, TP 2, L 2; alltoall; dropless", "--json", f"--out={out}", npus=4)
    assert code == 0, told[-3000:]
    report = json.loads(out.read_text())
    assert report["passed"]
    assert "npu (simulated)" in report["head"]
    assert (report["counts"]["failed"], report["counts"]["not tried"]) == (0, 0)
    assert report["counts"]["refused"] == 16
    assert report["counts"]["passed"] >= 70


@pytest.mark.slow
def test_everything_on_four_npus() -> None:
    code, told = launch(npus=4)
    assert code == 0, told[-3000:]
    assert "selftest passed: " in told


ONLY = "EP 2, TP 1, L 2; alltoall; dropless; packed"
# fault -> what is told of it: by whom it is noticed, and where ranks stand
FAULTS = {
    "rank_dies=1:40": ("no answer: its process has ended",),
    "hccl_error_at=40": ("error 21: simulated HcclAlltoAllV", "last collective: all_to_all_single of"),
    "event_never_completes=200": ("not done after 60 s", "in plain"),  # values are read, and the device is waited for
    "pinned_alloc_fails_at=3": ("no pinned host memory left",),
    "host_memory=100B": ("no pinned host memory left",),
    "device_memory=300MiB": ("out of memory",),
    "rank_late=1:25": ("not done after 60 s", "in _wait"),  # the counts of the late rank
}
_ON_EVERY_RUN = ("rank_dies=1:40", "hccl_error_at=40")


@pytest.mark.parametrize(
    "fault", [pytest.param(one, marks=() if one in _ON_EVERY_RUN else pytest.mark.slow) for one in FAULTS]
)
def test_every_fault_fails_by_name_and_ends_all_ranks(fault: str) -> None:
    code, told = launch(f"--only={ONLY}", "--step-limit=60", npus=2, fault=fault)
    assert code != 0, told[-3000:]
    words = " ".join(told.split())
    for wanted in (
        f"in step '{ONLY}",
        *FAULTS[fault],
        f"--- rank 0 stands here: step: {ONLY}",
        "--- rank 1 stands here: ",
        "last collective: ",
        "selftest FAILED",
    ):
        assert wanted.lower() in words.lower(), told[-6000:]
