"""Mistakes seeded into the npu code are noticed in every run; the code as it is passes the same runs (simulated)."""

from __future__ import annotations

from pathlib import Path

import pytest

from npu.launch import run_ranks
from npu.mutations import EP_TP

pytestmark = [pytest.mark.simulated, pytest.mark.megatron]

SEEDS = 50


@pytest.fixture(scope="module", params=EP_TP)
def noticed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[set[str]]]:
    """Return mutation -> for each rank the seeds in which it was noticed; "" is the code as it is."""
    ep, tp, known = EP_TP[request.param]
    arguments = {"where": request.param, "seeds": SEEDS, "names": ["", *known]}
    folder: Path = tmp_path_factory.mktemp("mutations")
    found = run_ranks("mutate", ep * tp, folder, arguments=arguments, timeout_s=280)
    return {name: [set(rank[name]) for rank in found] for name in arguments["names"]}


@pytest.mark.timeout(300)
def test_every_mutation_is_noticed_in_every_run_and_the_code_as_it_is_in_none(
    noticed: dict[str, list[set[str]]],
) -> None:
    for rank, seeds in enumerate(noticed.pop("")):
        assert not seeds, f"the unmutated code failed on rank {rank} with the seeds {sorted(seeds)}"
    assert noticed
    for name, by_rank in noticed.items():
        missed = set(map(str, range(SEEDS))) - set.union(*by_rank)
        assert not missed, f"{name} was not noticed with the seeds {sorted(missed)}"
