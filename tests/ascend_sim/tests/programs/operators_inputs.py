"""Cases that compare operators on the simulated npu with CPU torch: how a case is declared, gets inputs and is judged.

A case is a function of one argument, the source of its inputs. It is called twice, for the CPU and for the simulated
npu, gets equal inputs both times and returns tensors (also nested) which must be equal: bit for bit, or within a
relative tolerance that the case states.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

F32, BF16, I64, I32, BOOL = torch.float32, torch.bfloat16, torch.int64, torch.int32, torch.bool


class Inputs:
    """Tensors on `device`, the same on every device for the same seed; `dtype` is the type the case runs with."""

    def __init__(self, device: str, dtype: torch.dtype, seed: int) -> None:
        self.device, self.dtype = device, dtype
        self._generator = torch.Generator().manual_seed(seed)

    def randn(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Normal numbers, or whole numbers from -9 to 9, or random booleans, by the type."""
        wanted = dtype or self.dtype
        if wanted == BOOL:
            host = torch.rand(shape, generator=self._generator) > 0.5
        elif wanted.is_floating_point:
            host = torch.randn(shape, generator=self._generator)
        else:
            host = torch.randint(-9, 10, shape, generator=self._generator)
        return host.to(wanted).to(self.device)

    def rand(self, *shape: int, low: float = 0.1, high: float = 0.9) -> torch.Tensor:
        """Uniform numbers in [low, high)."""
        host = torch.rand(shape, generator=self._generator) * (high - low) + low
        return host.to(self.dtype).to(self.device)

    def ints(self, low: int, high: int, *shape: int, dtype: torch.dtype = I64) -> torch.Tensor:
        """Whole numbers in [low, high)."""
        return torch.randint(low, high, shape, generator=self._generator).to(dtype).to(self.device)

    def permutation(self, n: int) -> torch.Tensor:
        """The numbers below n in random order (int64)."""
        return torch.randperm(n, generator=self._generator).to(self.device)

    def like(self, values: list[Any], dtype: torch.dtype | None = None) -> torch.Tensor:
        """These values."""
        return torch.tensor(values, dtype=dtype or self.dtype).to(self.device)


@dataclass(frozen=True)
class Case:
    """One comparison; `relative` 0 means bit for bit, else the largest difference allowed over the largest value."""

    name: str
    body: Callable[[Inputs], Any]
    dtype: torch.dtype
    relative: float

    def check(self) -> str:
        """Empty when the simulated npu gives what CPU torch gives, else what differs."""
        seed = zlib.crc32(self.name.encode())
        try:
            expected = list(_flat(self.body(Inputs("cpu", self.dtype, seed))))
        except Exception as error:
            return f"cpu raised {type(error).__name__}: {error}"
        try:
            found = [tensor.cpu() for tensor in _flat(self.body(Inputs("npu", self.dtype, seed)))]
        except Exception as error:
            return f"simulated npu raised {type(error).__name__}: {error}"
        if len(found) != len(expected):
            return f"{len(found)} results, expected {len(expected)}"
        differences = [different(a, b, self.relative) for a, b in zip(found, expected, strict=True)]
        return "; ".join(f"result {i}: {text}" for i, text in enumerate(differences) if text)


def _flat(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value.detach()
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _flat(item)
    elif isinstance(value, (bool, int, float)):
        yield torch.tensor(value)
    else:
        raise TypeError(f"a case returned a {type(value).__name__}; allowed: tensors, numbers and sequences of them")


def different(found: torch.Tensor, expected: torch.Tensor, relative: float) -> str:
    """What differs between two host tensors, or nothing."""
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return f"{found.dtype} {list(found.shape)}, expected {expected.dtype} {list(expected.shape)}"
    same = (found == expected) | ((found != found) & (expected != expected))
    if bool(same.all()):
        return ""
    distance = (found.double() - expected.double()).abs().max().item()
    scale = expected.double().abs().max().item()
    if relative and distance <= relative * scale:
        return ""
    count = int((~same).sum())
    return f"{count} of {found.numel()} elements differ, by up to {distance:.3g} where the largest value is {scale:.3g}"


CASES: dict[str, Case] = {}


def case(
    *dtypes: torch.dtype, relative: float = 0.0, name: str = "", bf16: float | None = None
) -> Callable[[Callable[[Inputs], Any]], Callable[[Inputs], Any]]:
    """Registers a function as a case for each type (fp32 when none is given); `bf16` is bfloat16's own tolerance."""

    def register(body: Callable[[Inputs], Any]) -> Callable[[Inputs], Any]:
        for dtype in dtypes or (F32,):
            full = f"{name or body.__name__}[{str(dtype).removeprefix('torch.')}]"
            if full in CASES:
                raise ValueError(f"there are two cases of the name {full}")
            allowed = bf16 if bf16 is not None and dtype == BF16 else relative
            CASES[full] = Case(full, body, dtype, allowed)
        return body

    return register
