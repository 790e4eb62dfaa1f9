"""A tuned file in force: what it decides, what it does not, and when the plan refuses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers_tuned import DATA
from mindspeed_moe import planning, programs
from mindspeed_moe.cli import main
from mindspeed_moe.config import load_config
from mindspeed_moe.config.tuned import Tuned, write_tuned
from mindspeed_moe.environment import Environment, Found, Probes, probe_environment
from mindspeed_moe.errors import ConfigError
from mindspeed_moe.planning import decide, machine_here, make_plan, plugin_version, versions_here

ABSENT = Found(problem="not installed")


def environment(
    world_size: int = 2,
    megatron: str = "0.16.1",
    torch: str = "2.13.0",
    device: str = "cpu",
    cpu: str = "Turbo, 2 cores",
) -> Environment:
    return probe_environment(
        Probes(
            torch=lambda: Found(torch),
            torch_npu=lambda: ABSENT,
            megatron_core=lambda: Found(megatron),
            mindspeed=lambda: ABSENT,
            devices=lambda: {"cpu": (True, "always"), **({device: (True, "Fast 1")} if device != "cpu" else {})},
            variables={"WORLD_SIZE": str(world_size)},
            processor=lambda: cpu,
        )
    )


def write(folder: Path, **changes: Any) -> Path:
    """A configuration that names a tuned file beside it; returns the configuration's path."""
    data = {**DATA, "versions": {**DATA["versions"], "mindspeed_moe": plugin_version()}, **changes}
    write_tuned(Tuned.model_validate(data), folder / "tuned.yaml")
    (folder / "moe.yaml").write_text("tuned: tuned.yaml\n")
    return folder / "moe.yaml"


def refused(path: Path, found: Environment) -> str:
    with pytest.raises(ConfigError) as caught:
        decide(load_config(path), found)
    return str(caught.value)


def test_its_choices_take_the_place_of_auto(tmp_path: Path) -> None:
    _, _, decisions = decide(load_config(write(tmp_path)), environment())
    chosen = decisions[0]
    assert (chosen.implementation, chosen.counts, chosen.exchange) == ("packed", "sum", "all_gather")
    assert chosen.exchange_group == "auto", "what the file does not name stays as it was"


def test_explicit_keys_win(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text("tuned: tuned.yaml\npreprocess: {exchange: all_to_all}\n")
    _, _, decisions = decide(load_config(path), environment())
    assert (decisions[0].counts, decisions[0].exchange) == ("sum", "all_to_all")


def test_a_file_without_choices_leaves_the_defaults(tmp_path: Path) -> None:
    _, _, tuned = decide(load_config(write(tmp_path, choices={})), environment())
    _, _, usual = decide(load_config(), environment())
    assert tuned == usual


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (environment(world_size=4), "machine.world_size: 2, here 4"),
        (environment(torch="2.9.1"), "versions.torch: '2.13.0', here '2.9.1'"),
        (environment(megatron="0.12.1"), "versions.megatron_core: '0.16.1', here '0.12.1'"),
        (environment(cpu="Slow, 64 cores"), "machine.cpu: 'Turbo, 2 cores', here 'Slow, 64 cores'"),
        (
            environment(device="cuda"),
            "machine.device: 'cpu', here 'cuda'; machine.name: 'Turbo, 2 cores', here 'Fast 1'",
        ),
    ],
)
def test_stale_and_foreign_files_stop_the_plan(tmp_path: Path, found: Environment, told: str) -> None:
    message = refused(write(tmp_path), found)
    assert message.startswith(f"tuned: {tmp_path}/tuned.yaml: measured elsewhere or with other versions (")
    assert told in message
    assert message.endswith("run `mindspeed-moe tune` here, or remove `tuned`")


def test_outside_of_a_launch_the_number_of_processes_is_not_known(tmp_path: Path) -> None:
    _, _, decisions = decide(load_config(write(tmp_path)), environment(world_size=1))
    assert decisions[0].counts == "sum"


def test_an_edited_choice_names_the_file(tmp_path: Path) -> None:
    message = refused(write(tmp_path, choices={"exchange_group": "dedicated"}), environment())
    assert message == f"tuned: {tmp_path}/tuned.yaml: choices.exchange_group: 'dedicated'; allowed here: ep, tp_ep"


def test_a_release_without_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every release of today has it."""
    monkeypatch.setattr(planning, "rows_of", lambda *cell: ())
    assert "there is no `packed` for device cpu" in refused(write(tmp_path), environment())


def test_a_broken_file_stops_the_plan_and_not_the_reading(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "tuned.yaml").write_text("machine: [")
    assert refused(path, environment()).startswith(f"tuned: {tmp_path}/tuned.yaml:1: not valid YAML")


def test_turned_off_the_file_is_not_looked_at() -> None:
    plan, _ = make_plan(load_config({"enabled": False, "tuned": "nowhere.yaml"}), environment())
    assert plan.patches == ()


@pytest.mark.parametrize("implementation", ["stock", "reference"])
def test_without_packed_it_would_have_no_effect(tmp_path: Path, implementation: str) -> None:
    path = tmp_path / "moe.yaml"
    path.write_text(f"tuned: t.yaml\ndispatchers: {{alltoall: {implementation}}}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(
        f"{path}:1: tuned: 't.yaml': has no effect when dispatchers.alltoall is `{implementation}`"
    )
    assert str(caught.value).endswith("allowed: no such key, or dispatchers.alltoall: auto or packed")


# ------------------------------------------------------------------------------------------------ with Megatron


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A configuration whose tuned file fits this machine."""
    found = probe_environment()
    return write(
        tmp_path,
        machine=machine_here(found, "cpu").model_dump(),
        versions=versions_here(found).model_dump(),
        choices={"counts": "sum", "exchange": "all_gather"},
    )


@pytest.mark.megatron
def test_doctor_says_that_it_is_in_force(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here.write_text("device: cpu\ntuned: tuned.yaml\npreprocess: {exchange: all_to_all}\n")
    main(["doctor", "--json", "--config", str(here)])
    found = json.loads(capsys.readouterr().out)
    (told,) = [hint for hint in found["hints"] if hint.startswith("tuned:")]
    assert told == (
        f"tuned: {here.parent}/tuned.yaml is in force: counts sum ({DATA['reason']}); the configuration's own win: "
        f"exchange all_to_all"
    )
    assert found["plan"]["config"]["tuned"] == f"{here.parent}/tuned.yaml"
    assert found["plan"]["decisions"][0]["counts"] == "sum"


@pytest.mark.megatron
def test_doctor_names_a_stale_file_as_a_problem(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (here.parent / "tuned.yaml").read_text()
    (here.parent / "tuned.yaml").write_text(text.replace(f"mindspeed_moe: {plugin_version()}", "mindspeed_moe: 0.0.1"))
    here.write_text("device: cpu\ntuned: tuned.yaml\n")
    assert main(["doctor", "--json", "--config", str(here)]) == 1
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert problem.startswith(f"ConfigError: tuned: {here.parent}/tuned.yaml: measured elsewhere")


@pytest.mark.megatron
def test_what_is_built_is_what_the_file_says(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def build(decision: Any, generation: Any, facts: Any, max_slots: int, measured_for: Any, *more: Any) -> Any:
        if decision.row is not None and decision.dispatcher == "alltoall":
            asked.append((decision.counts, decision.exchange, measured_for))
        return built(decision, generation, facts, max_slots, measured_for, *more)

    built = programs.build
    monkeypatch.setattr(programs, "build", build)
    here.write_text("device: cpu\ntuned: tuned.yaml\n")
    make_plan(load_config(here), probe_environment())
    assert asked == [("sum", "all_gather", (8, 2, 1))]
