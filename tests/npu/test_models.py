"""A whole MoE layer and a GPT on the simulated npu give what the cpu gives, whatever implementation runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from npu.launch import run_ranks
from npu.models import IMPLEMENTATIONS

pytestmark = [pytest.mark.simulated, pytest.mark.megatron]

_ALONE = [pytest.param(one, marks=pytest.mark.slow) for one in ((1, 1), (2, 1))]  # EP 1: covered by the others
LAYOUTS = [*_ALONE, (1, 2), (2, 2)]  # TP x EP
RELATIVE = 1e-6  # of the largest value of a tensor: gloo and the simulated HCCL may add in different orders

Tensors = list[dict[str, np.ndarray]]


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda layout: f"tp{layout[0]}ep{layout[1]}")
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensors, Tensors]:
    """Return every rank's tensors from the simulated npu and from the cpu."""
    tp, ep = request.param

    def outputs(device: str) -> Tensors:
        folder: Path = tmp_path_factory.mktemp(device)
        arguments = {"device": device, "ep": ep, "tp": tp, "folder": str(folder)}
        run_ranks("outputs", tp * ep, folder, device=device, arguments=arguments)
        return [dict(np.load(folder / f"tensors{rank}.npz")) for rank in range(tp * ep)]

    return outputs("npu"), outputs("cpu")


def test_the_simulated_npu_gives_what_the_cpu_gives(both: tuple[Tensors, Tensors]) -> None:
    for rank, (npu, cpu) in enumerate(zip(*both, strict=True)):
        assert npu.keys() == cpu.keys()
        for name, wanted in cpu.items():
            largest = np.abs(wanted).max()
            assert largest > 0, f"{name} is all zeros: nothing was compared"
            difference = np.abs(npu[name] - wanted).max() / largest
            assert difference <= RELATIVE, f"rank {rank}, {name}: {difference:.1e} of the largest value"


def test_every_implementation_gives_the_same_bits(both: tuple[Tensors, Tensors]) -> None:
    for device in both:
        for rank, tensors in enumerate(device):
            stock = {name.partition(": ")[2]: one for name, one in tensors.items() if name.startswith("stock")}
            assert len(stock) > 5
            for implementation in IMPLEMENTATIONS:
                for name, wanted in stock.items():
                    found = tensors[f"{implementation}: {name}"]
                    assert np.array_equal(found, wanted), f"rank {rank}, {implementation}: {name} differs from stock"
