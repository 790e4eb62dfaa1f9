"""The demo's sizes: which fit, how many processes follow, and what the message names when they do not."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from mindspeed_moe.demo.settings import MAX_PROCESSES, Model, settle
from mindspeed_moe.errors import ConfigError


def test_defaults_are_what_the_issue_asks_for() -> None:
    settings = settle()
    assert (settings.ep, settings.etp, settings.processes) == (2, 2, 4)
    assert settings.implementations == ("stock", "reference", "packed")
    assert settings.data_parallel == 4
    assert settings.tokens_per_step == 4 * settings.model.batch * settings.model.sequence


@pytest.mark.parametrize(("tp", "ep", "etp"), list(itertools.product((1, 2, 4), (1, 2, 4, 8), (1, 2, 4))))
def test_fewest_processes_hold_both_kinds_of_groups(tp: int, ep: int, etp: int) -> None:
    fewest = next(count for count in range(1, 1000) if count % tp == 0 and count % (ep * etp) == 0)
    assert settle(tp=tp, ep=ep, etp=etp).processes == fewest
    assert settle(tp=tp, ep=ep, etp=etp, processes=2 * fewest).data_parallel == 2 * fewest // tp
    for processes in range(1, fewest):
        with pytest.raises(ConfigError, match=rf"--processes {processes}: must be a multiple of {fewest} "):
            settle(tp=tp, ep=ep, etp=etp, processes=processes)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ep": 3}, "--ep 3: the demo's 8 experts cannot be shared evenly; allowed: 1, 2, 4, 8"),
        ({"ep": 16}, "--ep 16: "),
        ({"tp": 3}, "--tp 3: the demo's 4 attention heads cannot be shared evenly; allowed: 1, 2, 4"),
        ({"tp": 8}, "--tp 8: "),
        ({"etp": 3}, "--etp 3: "),
        ({"tp": 0}, "--tp 0: must be at least 1"),
        ({"ep": -2}, "--ep -2: must be at least 1"),
        ({"etp": 0}, "--etp 0: must be at least 1"),
        ({"steps": 0}, "--steps 0: must be at least 1"),
        ({"processes": 0}, "--processes 0: must be a multiple of 4"),
        ({"processes": -4}, "--processes -4: "),
        ({"processes": 6}, "--processes 6: must be a multiple of 4 for --tp 1 and --ep 2 x --etp 2"),
        ({"processes": MAX_PROCESSES * 4}, f"at most {MAX_PROCESSES}"),
        ({"implementations": ("stock", "fast")}, "unknown 'fast'; allowed: one or more of stock, reference, packed"),
        ({"implementations": ("",)}, "unknown ''"),
        ({"implementations": ("packed", "packed")}, "each must be named once"),
        ({"implementations": ()}, "each must be named once"),
        ({"tp": 2, "model": Model(sequence=33)}, "--tp 2: the demo's 33 tokens of a sequence"),
    ],
)
def test_what_does_not_fit_is_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settle(**wrong)
    assert message in str(caught.value)


def test_settings_are_plain_data() -> None:
    plain = settle(text=Path("a.txt"), implementations=("packed",)).to_dict()
    assert plain["text"] == "a.txt"
    assert plain["implementations"] == ["packed"]
    assert plain["model"]["experts"] == 8
