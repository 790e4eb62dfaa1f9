"""Candidates, verdicts, and shapes from a Megatron command line; figures to check by hand."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspeed_moe.config import load_config
from mindspeed_moe.dispatch_table import lookup, rows_of
from mindspeed_moe.errors import ConfigError
from mindspeed_moe.tune.candidates import DEFAULTS, candidates
from mindspeed_moe.tune.judge import Verdict, judge, median_interval
from mindspeed_moe.tune.megatron_arguments import arguments_of_file, shape_of_arguments
from mindspeed_moe.tune.session import STANDING, stands

GENERATION = "hook_event_wait_graphs"


# ------------------------------------------------------------------------------------------------ candidates


@pytest.mark.parametrize(
    ("device", "ep", "tp", "count"),
    [
        ("cpu", 1, 1, 2),  # byte_lanes, sum
        ("cpu", 2, 1, 8),  # x all_to_all, all_gather x ep, tp_ep
        ("cpu", 2, 2, 4),  # ep does not hold the ranks
        ("cuda", 2, 1, 16),  # sum, matmul x 2 x 2 x current, side
        ("npu", 2, 1, 24),  # sum, matmul x 2 x ep, tp_ep, dedicated x 2
        ("npu", 2, 2, 16),  # without ep
        ("npu", 1, 1, 2),
    ],
)
def test_every_combination_once_and_the_defaults_first(device: str, ep: int, tp: int, count: int) -> None:
    row = rows_of(device, "alltoall", GENERATION)[0]
    found = candidates(row, ep, tp)
    assert len(found) == len(set(found)) == count
    assert found[0] == DEFAULTS
    for candidate in found:  # every one can be asked for
        config = load_config({"device": device, "preprocess": dict(candidate.choices)})
        assert lookup(device, "alltoall", GENERATION, config).row is row


def test_a_candidate_names_only_what_differs_from_the_defaults() -> None:
    row = rows_of("cuda", "alltoall", GENERATION)[0]
    for candidate in candidates(row, 2, 1):
        assert all(value != getattr(row, choice)[0] for choice, value in candidate.choices)
    row = rows_of("npu", "alltoall", GENERATION)[0]
    with_tp = candidates(row, 2, 2)
    assert {value for one in with_tp for choice, value in one.choices if choice == "exchange_group"} == {"dedicated"}


# ------------------------------------------------------------------------------------------------ verdicts


def noisy(seed: int, middle: float, width: float, count: int = 120) -> list[float]:
    draw = random.Random(seed)
    return [middle + draw.uniform(-width, width) for _ in range(count)]


def test_a_clear_winner() -> None:
    usual = noisy(1, 100, 5)
    verdict = judge({"defaults": usual, "fast": [one - 20 for one in usual]}, {"defaults": 0, "fast": 1})
    assert (verdict.winner, verdict.certain) == ("fast", True)
    assert "gain 20.0 to 20.0 us" in verdict.reason


def test_a_difference_inside_the_noise_chooses_nothing() -> None:
    durations = {"defaults": noisy(2, 100, 20), "a": noisy(3, 99, 20), "b": noisy(4, 100, 20)}
    verdict = judge(durations, {"defaults": 0, "a": 1, "b": 1})
    assert (verdict.winner, verdict.certain) == ("defaults", False)


def test_more_candidates_need_a_clearer_gain() -> None:
    """The luckiest of many is lucky: one and the same gain counts against one rival and not among a hundred."""
    usual = [100.0] * 100
    # Sorted gains: the interval of one comparison begins at place 37, of a hundred at place 30.
    gain = [0.0] * 33 + [10.0] * 67
    rival = [one - other for one, other in zip(usual, gain, strict=True)]
    assert judge({"defaults": usual, "x": rival}, {"defaults": 0, "x": 1}).winner == "x"
    crowd = {f"n{number}": [101.0] * 100 for number in range(99)}
    many = {"defaults": usual, "x": rival, **crowd}
    assert judge(many, {name: int(name != "defaults") for name in many}).winner == "defaults"


def test_no_single_choice_rests_on_noise() -> None:
    """Both gain by far, and the one with two choices is faster by nothing but noise: the second choice stays out."""
    durations = {"defaults": noisy(5, 100, 2), "one": noisy(6, 60.4, 3), "two": noisy(7, 60, 3)}
    assert judge(durations, {"defaults": 0, "one": 1, "two": 2}).winner == "one"
    durations["two"] = noisy(7, 40, 3)
    assert judge(durations, {"defaults": 0, "one": 1, "two": 2}).winner == "two", "and is taken when it gains for sure"


def test_a_certain_gain_that_is_too_small_chooses_nothing_for_certain() -> None:
    verdict = judge({"defaults": [100.0] * 50, "fast": [99.0] * 50}, {"defaults": 0, "fast": 1})
    assert (verdict.winner, verdict.certain) == ("defaults", True)
    assert verdict.reason.startswith("no gain beyond the noise and 2%: the defaults stay (fast: 99.0 us")


def test_the_defaults_may_be_the_fastest() -> None:
    verdict = judge({"defaults": [1.0, 1.0], "slow": [2.0, 2.0]}, {"defaults": 0, "slow": 1})
    assert verdict == Verdict("defaults", True, "nothing is faster than the defaults (defaults: 1.0 us)")


def test_one_rare_outlier_decides_nothing() -> None:
    durations = {"defaults": [100.0] * 49 + [9000.0], "other": [100.0] * 50}
    assert judge(durations, {"defaults": 0, "other": 1}).winner == "defaults"


def test_alone_the_defaults_win() -> None:
    assert judge({"defaults": [3.0]}, {"defaults": 0}).winner == "defaults"


def test_intervals_by_hand() -> None:
    # 100 values: 2.576 * sqrt(100) / 2 = 12.9, so 13 places on both sides of the middle.
    assert median_interval(list(range(100))) == (37, 63)
    # Of a hundred comparisons: 3.891 * 5 = 19.5, so 20 places.
    assert median_interval(list(range(100)), 100) == (30, 70)
    assert median_interval([1.0, 2.0]) == (1.0, 2.0)


FAST = {"defaults": [100.0] * 40, "fast": [80.0] * 40}
SLOW = {"defaults": [100.0] * 40, "fast": [120.0] * 40}
WON, LOST = Verdict("fast", True, ""), Verdict("defaults", True, "")
OPEN = Verdict("defaults", False, "")


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ([(WON, FAST)] * (STANDING - 1), False),
        ([(WON, FAST)] * STANDING, True),
        ([(LOST, FAST), *[(WON, FAST)] * (STANDING - 1)], False),
        ([(WON, FAST), (WON, SLOW), (WON, FAST)], False),  # in one block alone it was slower
        ([(LOST, SLOW)] * STANDING, True),
        ([(OPEN, SLOW)] * STANDING, False),
        ([(OPEN, FAST), *[(LOST, SLOW)] * STANDING], True),
    ],
)
def test_when_a_verdict_stands(blocks: list[tuple[Verdict, dict[str, list[float]]]], expected: bool) -> None:
    assert stands(blocks) is expected


# ------------------------------------------------------------------------------------------------ Megatron's arguments


def test_a_mixtral_command_line() -> None:
    line = (
        "pretrain_gpt.py --num-experts 8 --expert-model-parallel-size 4 --tensor-model-parallel-size 2 "
        "--seq-length 4096 --micro-batch-size 2 --sequence-parallel --expert-tensor-parallel-size 1 "
        "--moe-router-topk 2 --moe-token-dispatcher-type alltoall --bf16 --lr 1e-4"
    )
    shape = shape_of_arguments(line.split())
    assert (shape.experts, shape.ep, shape.tp, shape.tokens, shape.topk) == (8, 4, 1, 4096 * 2 // 2, 2)
    assert shape.told == (
        "T = seq-length 4096 x micro-batch-size 2 / tensor-model-parallel-size 2 (sequence parallel) = 4096"
    )


def test_experts_are_sharded_like_the_dense_part_unless_told_otherwise() -> None:
    line = (
        "--num-experts 8 --tensor-model-parallel-size 2 --seq-length 64 --micro-batch-size 1 --context-parallel-size 2"
    )
    shape = shape_of_arguments(line.split())
    assert (shape.tp, shape.ep, shape.topk, shape.tokens) == (2, 1, 2, 32)


def test_the_last_of_a_repeated_flag_counts() -> None:
    line = "--num-experts 8 --seq-length 64 --micro-batch-size 1 --num-experts=16"
    shape = shape_of_arguments(line.split())
    assert shape.experts == 16


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--num-experts 8 --micro-batch-size 1", "--seq-length missing"),
        ("", "--num-experts, --seq-length, --micro-batch-size missing"),
        ("--num-experts eight --seq-length 1 --micro-batch-size 1", "'eight' is not a whole number"),
        ("--num-experts 8 --seq-length $LENGTH --micro-batch-size 1", r"LENGTH. is not a whole number"),
        ("--num-experts 8 --seq-length 1 --micro-batch-size", "expected one argument"),
        ("--num-experts 8 --seq-length 6 --micro-batch-size 1 --context-parallel-size 4", "6 does not divide by 4"),
        (
            "--num-experts 8 --seq-length 8 --micro-batch-size 1 --moe-token-dispatcher-type allgather",
            "'allgather' is not what mindspeed-moe replaces",
        ),
        (
            "--num-experts 8 --seq-length 8 --micro-batch-size 1 --moe-pad-expert-input-to-capacity",
            "there is nothing to tune",
        ),
    ],
)
def test_command_lines_without_a_shape(line: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        shape_of_arguments(line.split())


COMMAND = "torchrun train.py --num-experts 64 --moe-router-topk 6 --seq-length 4096 --micro-batch-size 1"
PLAIN = """\
#!/bin/bash
# --num-experts 99 is a comment
export TP=2   # of the dense part
EP="8"
TOKENS='4096'
SEQ=$TOKENS
torchrun --nproc-per-node 8 pretrain_gpt.py --tag run#3 --name "one word" \\
    --num-experts 64 --expert-model-parallel-size=${EP} \\
    --moe-router-topk 6 --seq-length "$SEQ" --micro-batch-size 1 --tensor-model-parallel-size $TP \\
    --sequence-parallel --expert-tensor-parallel-size 1 # the end
"""
LIST = """\
--num-experts 64 --expert-model-parallel-size=8  # experts
--moe-router-topk 6
# --num-experts 16
--seq-length 2048 --micro-batch-size 1
"""


@pytest.mark.parametrize("text", [PLAIN, LIST, PLAIN.replace("\n", "\r\n")])
def test_a_plain_script_and_a_list(tmp_path: Path, text: str) -> None:
    (tmp_path / "train.sh").write_bytes(text.encode())
    shape = shape_of_arguments(arguments_of_file(tmp_path / "train.sh"))
    assert (shape.experts, shape.ep, shape.tp, shape.tokens, shape.topk) == (64, 8, 1, 2048, 6)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("if [ $1 = big ]; then", "fi"),
        ("if true", "fi"),
        ("case $1 in", ""),
        ("N=64\nN=16", ""),
        ("N=${N:-64}", ""),
        ("N=$((8 * 8))", ""),
        ("N=`cat experts`", ""),
        ("N=$EXPERTS", ""),
        ("TP=2; EP=4", ""),
        ("MOE=(", ")"),
        ('OLD="--num-experts 16"', ""),
        ('MOE="', '"'),
        ("source sizes.sh", ""),
        ("eval torchrun", ""),
        ("run() {", "}"),
        ("cat <<EOF", "EOF"),
        ("", "torchrun evaluate.py --num-experts 16"),
        ("", "# \\\n--num-experts 16"),
        ("sh other.sh \\", ""),
        ("echo a &&\\", ""),
        ("# gr\xfc\xdfe", ""),
    ],
)
def test_a_script_that_only_a_shell_can_read(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "train.sh"
    path.write_bytes(f"{before}\n{COMMAND}\n{after}\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"train\.sh(:\d)?: .*(read only if it is one plain command|cannot be read)"):
        arguments_of_file(path)


@pytest.mark.parametrize(
    "end", ["--tag $RUN", "--tag '$TP'", "| tee log", "> log", "&", "2>&1", "--tag {a,b}", "--tag 'open", "; ls"]
)
def test_a_command_with_more_than_words(tmp_path: Path, end: str) -> None:
    (tmp_path / "train.sh").write_text(f"TP=2\n{COMMAND} {end}\n")
    with pytest.raises(ConfigError, match=r"train\.sh:2: .*what it prints"):
        arguments_of_file(tmp_path / "train.sh")


@pytest.mark.parametrize("flag", ["--use-checkpoint-args", "--yaml-cfg model.yaml", "--mm-model=model.json"])
def test_sizes_that_no_flag_tells(flag: str) -> None:
    with pytest.raises(ConfigError, match="the sizes stand elsewhere"):
        shape_of_arguments(f"{COMMAND} {flag}".split())


@settings(deadline=None)
@given(st.text(alphabet="ab-=$ {}()'\"\\#;\n", max_size=40))
def test_any_script_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """What bash makes of a script that is read is what was read."""
    path = tmp_path_factory.mktemp("scripts") / "train.sh"
    path.write_text(f"a=1\nprintf %s@ {text}\n")
    try:
        words = arguments_of_file(path)
    except ConfigError:
        return
    ran = subprocess.run(["bash", "--norc", path], capture_output=True, text=True, check=True, cwd=path.parent)
    assert ran.stdout == "".join(f"{word}@" for word in words[2:]) or not words[2:]


def test_a_script_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--megatron-args: .*gone\.sh: cannot be read"):
        arguments_of_file(tmp_path / "gone.sh")
