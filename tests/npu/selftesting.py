"""Jobs on ranks of the simulated npu: selftest's own steps, on code with a mistake seeded into it and as it is."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from mindspeed_moe.contract import generation_of
from mindspeed_moe.selftest.dispatchers import Maker
from mindspeed_moe.selftest.place import Place
from mindspeed_moe.selftest.run import Runner
from mindspeed_moe.selftest.steps import ALLTOALL, BARE, DROPLESS, Contestant, Layout, Step
from mindspeed_moe.selftest.verdicts import Verdicts
from npu import mutations

DELAY_US = 200.0
HOLD_US = 100_000.0  # long against the host's own work, so that what nobody waits for has not happened yet
CHOICES = {"counts": "sum", "exchange": "all_to_all", "exchange_group": "tp_ep", "tokens_per_expert": "device"}


def selftest(rank: int, where: str, names: dict[str, list[str]]) -> dict[str, dict[str, list[str]]]:
    """For each stream and mutation, and for the code as it is (name ""): what the step under load found."""
    import megatron.core

    from tests.ascend_sim.schedule import set_schedule

    ep, tp, known = mutations.EP_TP[where]
    set_schedule(0, delay_us=DELAY_US, hold_us=HOLD_US)
    verdicts = Verdicts(dist.distributed_c10d._get_default_store(), rank, ep * tp, timedelta(seconds=120))
    maker = Maker(generation_of(megatron.core.__version__), "npu")
    found: dict[str, dict[str, list[str]]] = {}
    for stream, of_stream in names.items():
        choices = tuple({**CHOICES, "stream": stream}.items())
        step = Step(Layout(ep, tp, 2), ALLTOALL, DROPLESS, Contestant("packed", choices), BARE, load=True)
        for name in of_stream:
            runner = Runner(maker, verdicts, Place(), lambda name: None, rank=rank, seed=0, simulated=True)
            with known[stream][name]() if name else nullcontext():
                outcomes = list(runner.run([step]))
            found.setdefault(stream, {})[name] = [str(one) for outcome in outcomes for one in outcome.problems]
    return found


JOBS: dict[str, Any] = {"selftest": selftest}
