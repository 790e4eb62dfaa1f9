"""A tuned file: what `mindspeed-moe tune` chose on one machine for one shape, as data that a configuration includes.

It holds for the machine, the versions and the group that it was measured with; anything else is refused, because a
choice that was measured elsewhere is no better than the default and looks as if it were.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mindspeed_moe.config.yaml_file import read_yaml
from mindspeed_moe.errors import ConfigError
from mindspeed_moe.files import require_writable as require_place
from mindspeed_moe.files import write_whole

FORMAT = 1
_EXPECTED = "a file that `mindspeed-moe tune` of this version wrote, unchanged"
_SHOWN = 80  # characters of a value in a message


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Machine(_Section):
    """Where it was measured.

    name: of the device. cpu: the host's processor, on which the cost of every launch depends. world_size: processes
    that took part.
    """

    device: Literal["npu", "cuda", "cpu"]
    name: str
    cpu: str
    world_size: int = Field(ge=1)


class Versions(_Section):
    """What it was measured with; torch_npu is empty where it is not installed."""

    mindspeed_moe: str
    megatron_core: str
    torch: str
    torch_npu: str = ""


class TunedShape(_Section):
    """The layer: E experts, EP x TP ranks, T tokens a rank, topk experts a token."""

    experts: int = Field(ge=1)
    ep: int = Field(ge=1)
    tp: int = Field(ge=1)
    tokens: int = Field(ge=1)
    topk: int = Field(ge=1)


class TunedChoices(_Section):
    """Values for `preprocess`; a key that is missing stays at its default."""

    counts: Literal["sum", "byte_lanes", "matmul"] | None = None
    exchange: Literal["all_gather", "all_to_all"] | None = None
    exchange_group: Literal["tp_ep", "ep", "dedicated"] | None = None
    stream: Literal["current", "side"] | None = None


Microseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Timing(_Section):
    """Percentiles of a call's duration in microseconds, the slowest rank of each round."""

    p20: Microseconds
    p50: Microseconds
    p80: Microseconds


class OperationCosts(_Section):
    """Host time of one operation in microseconds, at the median; what `mindspeed-moe estimate` reads."""

    kernel: Microseconds
    collective: Microseconds
    copy_to_host: Microseconds = Field(alias="copy")
    record: Microseconds
    wait: Microseconds


class Tuned(_Section):
    """The whole file.

    choices: those that beat the defaults by more than the noise, all others stay at auto. reason: of the verdict.
    settled: false when the measurement ended at its maximum of rounds, without a clear order.
    """

    format: Literal[1] = Field(alias="mindspeed_moe_tuned")
    machine: Machine
    versions: Versions
    shape: TunedShape
    choices: TunedChoices
    reason: str
    settled: bool
    rounds: int = Field(ge=1)
    timings_us: dict[str, Timing]
    costs_us: OperationCosts

    def chosen(self) -> dict[str, str]:
        """Return the choices that differ from leaving it to the defaults."""
        return {key: value for key, value in self.choices.model_dump().items() if value is not None}


def read_tuned(path: str | os.PathLike[str]) -> Tuned:
    """Read and check a file's form. Raises ConfigError naming file, line, key and value."""
    try:
        data, lines = read_yaml(path)
    except ConfigError as error:
        raise ConfigError(f"tuned: {error}; expected {_EXPECTED}") from error
    try:
        return Tuned.model_validate(data)
    except ValidationError as error:
        messages = []
        for detail in error.errors():
            at = tuple(str(part) for part in detail["loc"])
            line = f":{lines[at]}" if at in lines else ""
            found = "" if detail["type"] == "missing" else f"{_short(detail['input'])}: "
            key = ".".join(at) or "the file"
            messages.append(f"tuned: {path}{line}: {key}: {found}{detail['msg']}; expected {_EXPECTED}")
        raise ConfigError("\n".join(messages)) from None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def text_of(tuned: Tuned) -> str:
    """Return the file's text."""
    return str(yaml.safe_dump(tuned.model_dump(by_alias=True, exclude_none=True), sort_keys=False, width=110))


def require_writable(path: str | os.PathLike[str]) -> None:
    """Raise ConfigError when `write_tuned` could not write there; leaves nothing behind."""
    try:
        require_place(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


def write_tuned(tuned: Tuned, path: str | os.PathLike[str]) -> None:
    """Write the file whole or not at all. Raises ConfigError when the folder cannot be written to."""
    try:
        write_whole(path, text_of(tuned).encode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


def require_fit(tuned: Tuned, path: str, here: Machine, versions: Versions) -> None:
    """Raise ConfigError unless the file was measured on this sort of machine, with these versions."""
    differences = []
    for section, measured, found in (("machine", tuned.machine, here), ("versions", tuned.versions, versions)):
        theirs: dict[str, Any] = measured.model_dump()
        ours: dict[str, Any] = found.model_dump()
        differences += [
            f"{section}.{key}: {theirs[key]!r}, here {ours[key]!r}" for key in theirs if theirs[key] != ours[key]
        ]
    if differences:
        raise ConfigError(
            f"tuned: {path}: measured elsewhere or with other versions ({'; '.join(differences)}): "
            f"run `mindspeed-moe tune` here, or remove `tuned`"
        )
