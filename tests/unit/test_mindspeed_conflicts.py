"""The table of conflicts: a launch line for every row, the verdict of doctor on it, and no row that none can reach."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mindspeed_moe.cli import main
from mindspeed_moe.cli.launch import judge_launch, read_launch
from mindspeed_moe.config import Config, load_config
from mindspeed_moe.environment import Environment, Found, probe_environment
from mindspeed_moe.errors import ConfigError
from mindspeed_moe.mindspeed.conflict import BYPASSED, COMPOSES, FAILS, INEFFECTIVE, REFUSED, TAKEN, WRAPS, Conflict
from mindspeed_moe.mindspeed.conflicts import CONFLICTS
from mindspeed_moe.mindspeed.verdicts import verdicts
from mindspeed_moe.tables import render

GOOD = "--num-experts 8 --moe-token-dispatcher-type alltoall"


def here(megatron: str = "0.12.1", mindspeed: str = "2.3.0") -> Environment:
    return replace(probe_environment(), megatron_core=Found(megatron), mindspeed=Found(mindspeed))


def judged(line: str, megatron: str = "0.12.1", config: Config | None = None) -> Any:
    return judge_launch(line.split(), config or Config(), here(megatron))


def in_rows() -> list[Any]:
    return [pytest.param(row, id=f"{row.feature}, {row.span()}") for row in CONFLICTS]


def triton_of(row: Conflict) -> bool:
    return dict(row.when).get("triton") is not False


@pytest.mark.parametrize("row", in_rows())
def test_the_launch_line_of_a_row_hits_it(row: Conflict) -> None:
    for major, minor in row.releases:
        args = read_launch(("pretrain_gpt.py " + row.launch).split())
        hit = verdicts(args, f"{major}.{minor}.0", triton=triton_of(row))
        assert row in hit
        assert all(str(verdict).startswith(verdict.feature) for verdict in hit)


@pytest.mark.parametrize("row", in_rows())
def test_doctor_says_what_the_row_says(row: Conflict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mindspeed_moe.mindspeed.verdicts._has_triton", lambda: triton_of(row))
    major, minor = row.releases[0]
    launch = judged("pretrain_gpt.py " + row.launch, f"{major}.{minor}.0")
    (found,) = [verdict for verdict in launch.verdicts if verdict is row]
    assert found.effect == row.effect
    assert (str(found) in launch.problems) == (row.effect in INEFFECTIVE)


@pytest.mark.parametrize("row", in_rows())
def test_no_release_outside_of_a_rows_span(row: Conflict) -> None:
    args = {**read_launch(row.launch.split()), "triton": triton_of(row)}
    (_, first), (_, last) = row.releases
    for minor in range(10, 20):
        assert row.applies(args, (0, minor)) == (first <= minor <= last)


def test_a_row_for_every_feature_that_touches_dispatchers() -> None:
    """Named here by hand, from the branches' lists of features."""
    named = " ".join(row.feature for row in CONFLICTS)
    for feature in (
        "moe-alltoall-overlap-comm", "moe-fb-overlap", "balanced-moe-experts", "moe-alltoall-mc2", "moe-tp-extend-ep",
        "moe-allgather-overlap-comm", "moe-permute-fusion", "moe-grouped-gemm", "fix-router", "enable-expert-placement",
        "moe-zero-memory", "n-shared-experts", "fp8-format", "hccl-group-buffer", "hccl-group-buffer-adaptive",
        "disable-gloo-group", "ai-framework mindspore", "moe-npu-fast-ops",
    ):  # fmt: skip
        assert feature in named


def test_every_effect_has_a_row_and_no_two_rows_contradict_each_other() -> None:
    assert {row.effect for row in CONFLICTS} == {COMPOSES, WRAPS, TAKEN, BYPASSED, FAILS, REFUSED}
    for row in CONFLICTS:
        for other in CONFLICTS:
            if other is row or other.when != row.when:
                continue
            apart = other.releases[1] < row.releases[0] or row.releases[1] < other.releases[0]
            assert apart, f"{row.feature} and {other.feature} say two things of one launch"


# ------------------------------------------------------------------------------------------------ launches


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("--num-layers 2", "without --num-experts"),
        ("--num-experts 8", "it is Megatron's default: ask for --moe-token-dispatcher-type alltoall"),
        ("--num-experts 8 --moe-token-dispatcher-type flex", "DeepEP"),
        (f"{GOOD} --moe-fb-overlap", "moe-fb-overlap bypasses mindspeed_moe"),
        (f"{GOOD} --ai-framework mindspore", "exclude each other: the plugin is written for torch"),
        (f"{GOOD} --no-moe-npu-preprocess", "the launch switches mindspeed_moe off"),
        (f"{GOOD} --optimization-level 1", "--optimization-level 1: MindSpeed leaves accelerations out"),
    ],
)
def test_what_makes_the_plugin_ineffective(line: str, problem: str) -> None:
    problems = judged(line).problems
    assert len(problems) == 1
    assert problem in problems[0]


@pytest.mark.parametrize("line", [GOOD, f"{GOOD} --moe-grouped-gemm --moe-permute-fusion --moe-npu-preprocess"])
def test_an_effective_launch(line: str) -> None:
    assert judged(line).problems == []


def test_permute_fusion_under_0_18_fails_in_mindspeed() -> None:
    (problem,) = judged(f"{GOOD} --moe-permute-fusion", "0.18.2").problems
    assert "TypeError when a layer is built, before any code of ours" in problem
    (problem,) = judged(f"{GOOD} --use-fused-moe-token-permute-and-unpermute", "0.18.2").problems
    assert "pg_collection" in problem


def test_which_of_flag_and_file_wins() -> None:
    launch = judged(f"{GOOD} --moe-npu-preprocess", config=load_config({"enabled": False}))
    assert launch.problems == []
    assert launch.hints[0] == "moe_npu_preprocess: True of the launch wins over `enabled: false`"
    (problem,) = judged(GOOD, config=load_config({"enabled": False})).problems
    assert problem == "enabled: false, and no --moe-npu-preprocess: mindspeed_moe is off"


def test_the_flag_without_mindspeed() -> None:
    plain = replace(here(), mindspeed=Found(problem="not installed"))
    launch = judge_launch(f"{GOOD} --moe-npu-preprocess".split(), Config(), plain)
    assert "MindSpeed is not on the path here" in launch.problems[0]


def test_a_launch_in_yaml(tmp_path: Path) -> None:
    megatron = tmp_path / "megatron.yaml"
    megatron.write_text("language_model:\n  num_experts: 8\n  moe_fb_overlap: true\nmodel_parallel: {}\n")
    launch = judged(f"pretrain_gpt.py --yaml-cfg {megatron} --moe-token-dispatcher-type alltoall")
    assert [verdict.feature for verdict in launch.verdicts] == ["moe-fb-overlap"]
    other = judged(f"pretrain_gpt.py --yaml-cfg={megatron} --num-experts 0 --moe-token-dispatcher-type alltoall")
    assert other.arguments["num_experts"] == 8, "Megatron ignores its flags beside --yaml-cfg"
    hydra = "main_ppo.py actor.override_transformer_config.num_experts=8 +a.moe_token_dispatcher_type=alltoall"
    assert judged(hydra).problems == []


def test_a_flag_wins_over_a_file(tmp_path: Path) -> None:
    file = tmp_path / "launch.yaml"
    file.write_text("num_experts: 8\nmoe_token_dispatcher_type: allgather\n")
    assert judged(f"{file} --moe-token-dispatcher-type alltoall").problems == []
    assert "allgather" in judged(str(file)).problems[0]


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\x00"])
def test_a_file_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    file = tmp_path / "launch.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"launch\.yaml: "):
        read_launch([str(file)])
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read"):
        read_launch(["nowhere.yaml"])


@pytest.mark.parametrize("word", ["%j", "[1", "2026-99-99", "!!int abc", "9" * 5000, "[" * 5000, "*a", "a: b: c"])
def test_a_value_that_is_no_yaml_is_a_word(word: str) -> None:
    read = read_launch(["main_ppo.py", "a.moe_token_dispatcher_type=alltoall", f"trainer.experiment_name={word}"])
    assert read == {"moe_token_dispatcher_type": "alltoall", "experiment_name": word}


@pytest.mark.parametrize(
    "text",
    [
        "a: 2026-99-99",
        "a: " + "9" * 5000,
        "a: !!int abc",
        "a: !!bool abc",
        "a: !!float ''",
        "a: !!timestamp x",
        "a: " + "[" * 5000,
        "a: " + "{a: " * 5000,
        "- " * 5000,
        "a: &a [*a]",
        "a: &a\n  b: *a",
        "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, 60))]),
        "a: 1\na: 2",
        "? [1]\n: 2",
        "a: !!python/object/apply:os.system [true]",
    ],
)
@pytest.mark.parametrize("flag", [[], ["pretrain_gpt.py", "--yaml-cfg"]])
def test_a_hostile_file(tmp_path: Path, text: str, flag: list[str]) -> None:
    file = tmp_path / "launch.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"launch\.yaml: cannot be read: ") as refused:
        read_launch([*flag, str(file)])
    assert len(str(refused.value)) < 1000


P = "a.megatron.override_transformer_config"
BOTH = f"+{P}.moe_token_dispatcher_type=alltoall +{P}.num_moe_experts=64"
HYDRA = "python3 -m verl.trainer.main_ppo --config-path=config --config-name"


@pytest.mark.parametrize("start", [f"{HYDRA} ppo a.b=c", f"{HYDRA}=ppo", "torchrun --nproc-per-node 8 -m main x.y=1"])
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (BOTH, None),
        (f"{BOTH} ++{P}.moe_alltoall_overlap_comm=True", "moe-alltoall-overlap-comm, alltoall bypasses"),
        (f"{BOTH} +{P}.moe_npu_preprocess=False", "switches mindspeed_moe off"),
        (f"+{P}.moe_token_dispatcher_type=flex", "flex dispatcher bypasses"),
        (f"+{P}.moe_token_dispatcher_type=alltoall", "cannot tell .*the number of experts: not among these words"),
        (f"+{P}.num_moe_experts=64", "cannot tell .*the dispatcher's type: not among these words"),
        (f"{BOTH} +{P}.moe_token_dispatcher_type=${{oc.env:TYPE}}", "cannot tell .*filled in|is not valid"),
        (f"{BOTH} ~{P}.moe_grouped_gemm=True", None),
    ],
)
def test_words_of_hydra_behind_flags(start: str, words: str, told: str | None) -> None:
    problems = judged(f"{start} {words}").problems
    assert len(problems) == (told is not None)
    assert told is None or re.search(told, problems[0])


@pytest.mark.parametrize(
    "line",
    [
        "megatron sft --model /models/Qwen3-30B-A3B --expert_model_parallel_size 8",
        "pretrain_gpt.py --use-checkpoint-args --moe-token-dispatcher-type alltoall",
        "pretrain_vlm.py --mm-model model.json --moe-token-dispatcher-type alltoall",
        "train_grpo.py --config-name grpo_qwen3",
        f"train_fsdp2.py {GOOD}",
        f"-m mindspeed_mm.fsdp.train {GOOD}",
        f"pretrain_gpt.py {GOOD} --bf16 $MOE_ARGS",
        "pretrain_gpt.py --num-experts $EXPERTS --moe-token-dispatcher-type alltoall",
        f"pretrain_gpt.py {GOOD} --moe-fb-overlap ${{OVERLAP}}",
    ],
)
def test_what_stands_elsewhere_is_not_told(line: str) -> None:
    launch = judged(line)
    (problem,) = launch.problems
    assert problem.startswith("cannot tell whether mindspeed_moe takes effect: ") or "moe-fb-overlap" in problem
    told = render(*launch.parts())
    assert "cannot tell" in told
    assert "effective" not in told
    assert "no MoE layers" not in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("MODEL_ARGS:\n  --num-experts: 8\n  --moe-token-dispatcher-type: flex\n", "flex dispatcher bypasses"),
        ("MODEL_ARGS:\n  --num-experts: 8\n  --moe-token-dispatcher-type: alltoall\n", None),
        ("defaults: [model]\nmegatron:\n  num_experts: 8\n", "cannot tell .*the dispatcher's type"),
        ("moe_enable_deepep: true\n", "cannot tell .*number of experts and the dispatcher's type"),
    ],
)
def test_a_file_that_says_a_part(tmp_path: Path, text: str, told: str | None) -> None:
    (tmp_path / "model_config.yaml").write_text(text)
    for line in (f"{tmp_path}/model_config.yaml", f"{tmp_path}/model_config.yaml --bf16"):
        problems = judged(line).problems
        assert len(problems) == (told is not None)
        assert told is None or re.search(told, problems[0])


def test_a_launch_that_ends_in_mindspeed_is_not_told_more() -> None:
    launch = judged(f"{GOOD} --moe-alltoall-overlap-comm --moe-tp-extend-ep")
    assert [(one.feature, one.effect) for one in launch.verdicts] == [
        ("moe-alltoall-overlap-comm, moe-tp-extend-ep", FAILS)
    ]


def test_a_shell_script_is_not_run() -> None:
    with pytest.raises(ConfigError, match="give the command that it starts"):
        read_launch(["bash", "pretrain.sh"])


# ------------------------------------------------------------------------------------------------ the command


@pytest.mark.megatron
def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--json", "--", "pretrain_gpt.py", *GOOD.split(), "--hccl-group-buffer", "ep:100"])
    found = json.loads(capsys.readouterr().out)
    # For a release without a MindSpeed, doctor knows of no effect and says that; nothing else may be in the way.
    unknown = [problem for problem in found["problems"] if "no MindSpeed for that release was read" in problem]
    assert found["problems"] == unknown
    assert code == bool(unknown)
    if unknown:
        return
    assert [one["feature"] for one in found["launch"]["verdicts"]] == ["hccl-group-buffer"]
    assert [one["exchange_group"] for one in found["launch"]["groups"]] == ["ep", "tp_ep", "dedicated"]
    assert main(["doctor", "--", "pretrain_gpt.py", "--num-experts", "8"]) == 1
    told = capsys.readouterr().out
    assert "problem: allgather dispatcher bypasses mindspeed_moe" in told


def test_a_launch_and_another_question(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--contract", "--", "pretrain_gpt.py"]) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_the_launchs_own_file_is_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "moe.yaml"
    file.write_text("device: cpu\nenabled: false\n")
    assert main(["doctor", "--", "pretrain_gpt.py", *GOOD.split(), "--mindspeed-moe-config", str(file)]) == 1
    told = capsys.readouterr().out
    assert f"configuration: {file}" in told
    assert "problem: enabled: false, and no --moe-npu-preprocess" in told


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (f"{GOOD} --moe-npu-preprocces", "moe_npu_preprocces: is no argument of mindspeed_moe; did you mean"),
        ("--num-experts 8 --moe-token-dispatcher-type all2all", "'all2all' is not valid; allowed: allgather, alltoall"),
    ],
)
def test_what_is_misspelt(line: str, told: str) -> None:
    (problem,) = judged(line).problems
    assert told in problem


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([*GOOD.split(), "--moe-npu-preprocess=false"], "--moe-npu-preprocess: takes no value, found 'false'"),
        (["pretrain_gpt.py", "--moe-fb-overlap --moe-grouped-gemm"], "is one word with spaces in it"),
        (["pretrain_gpt.py"], "there is nothing to judge"),
        ([str(Path(__file__).resolve().parents[2] / "examples/moe.yaml")], "is a configuration of mindspeed_moe"),
    ],
)
def test_what_cannot_be_read_as_a_launch(words: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read_launch(words)


@pytest.mark.parametrize(
    ("megatron", "known"), [("0.11.0", False), ("0.13.1", False), ("0.18.2", True), ("0.19.0", False)]
)
def test_a_release_without_a_mindspeed(megatron: str, known: bool) -> None:
    problems = judged(f"{GOOD} --moe-fb-overlap", megatron).problems
    assert any("no MindSpeed for that release was read" in problem for problem in problems) is not known
    assert judged(GOOD, megatron).problems == []


def test_a_dictionary_of_overrides_is_not_a_whole_launch() -> None:
    (problem,) = judged("main.py a.moe_npu_preprocess=true b.recompute=false").problems
    assert problem.startswith("cannot tell whether mindspeed_moe takes effect: the number of experts and ")
    (problem,) = judged("main.py a.num_moe_experts=8 a.moe_token_dispatcher_type=allgather").problems
    assert problem.startswith("allgather dispatcher bypasses mindspeed_moe")


@pytest.mark.megatron
def test_what_is_planned_is_what_the_launch_would_get(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "moe.yaml"
    file.write_text("enabled: false\ndevice: cpu\n")
    for flag, patched in ((), False), (("--moe-npu-preprocess",), True), (("--no-moe-npu-preprocess",), False):
        main(["doctor", "--json", "--config", str(file), "--", "pretrain_gpt.py", *GOOD.split(), *flag])
        assert bool(json.loads(capsys.readouterr().out)["plan"]["patches"]) is patched
