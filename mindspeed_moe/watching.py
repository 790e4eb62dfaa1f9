"""From the configuration to what looks on while programs run, and to what all ranks must have in common of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from mindspeed_moe import lifetime
from mindspeed_moe.config import Config
from mindspeed_moe.config.model import Telemetry
from mindspeed_moe.environment import Environment
from mindspeed_moe.preprocess.steps import Steps
from mindspeed_moe.programs import Watched
from mindspeed_moe.telemetry.claim import Claim
from mindspeed_moe.telemetry.collector import Collector
from mindspeed_moe.telemetry.outlet import Outlet, Writer
from mindspeed_moe.telemetry.public import now_counting
from mindspeed_moe.telemetry.subscription import Subscribers
from mindspeed_moe.telemetry.tensorboard import TensorBoard
from mindspeed_moe.verify.public import now_comparing
from mindspeed_moe.verify.verification import FIRST_CALLS, Schedule, Verification

_SCHEDULES = {"first": Schedule(FIRST_CALLS), "always": Schedule(None)}
_OWN = {"tuned", "dumps", "telemetry"}  # of each rank: files and what is written to them


def common_settings(config: Config) -> dict[str, str]:
    """Return what ranks must agree on of a configuration, by dotted key."""
    settings: dict[str, str] = {}
    for key, value in config.model_dump(exclude=_OWN).items():
        if isinstance(value, dict):
            settings |= {f"{key}.{name}": str(one) for name, one in value.items()}
        else:
            settings[key] = str(value)
    return settings


def watched_as(config: Config, environment: Environment, device: str, versions: Mapping[str, str]) -> Watched:
    """Return what looks on. versions: of the plugin and of what it runs with, for dumps and files."""
    told = {"device": device, **versions, "python": environment.python}
    steps = Steps()
    return Watched(
        None if config.verify == "off" else _verification(config, steps, told),
        _collector(config.telemetry, steps, told) if config.telemetry.enabled else None,
        steps,
    )


def now_watching(watched: Watched) -> None:
    """What scripts ask and number is of these from here on: to be called once they do look on."""
    now_counting(watched.steps)
    lifetime.at_end(lambda: now_counting(None))
    now_comparing(None if watched.verification is None else watched.verification.compared)


def _verification(config: Config, steps: Steps, versions: Mapping[str, str]) -> Verification:
    schedule = _SCHEDULES[config.verify] if isinstance(config.verify, str) else Schedule(None, config.verify.every)
    return Verification(schedule, steps, Path(config.dumps).absolute(), config.model_dump(mode="json"), versions)


def _collector(wanted: Telemetry, steps: Steps, versions: Mapping[str, str]) -> Collector:
    folder = Path(wanted.folder).absolute()  # as it is meant now, wherever the script goes

    def writers() -> list[Writer]:
        made: list[Writer] = [_WRITERS[name](wanted, folder, versions) for name in dict.fromkeys(wanted.writers)]
        return [*made, Subscribers()]

    return Collector(steps, Outlet(writers), wanted.interval)


def _json_lines(wanted: Telemetry, folder: Path, versions: Mapping[str, str]) -> Writer:
    from mindspeed_moe.telemetry.jsonl import JsonLines  # needs orjson, which nothing else does

    return JsonLines(folder, 0, versions, wanted.max_megabytes * 10**6, Claim(folder))  # the layers know the rank


_WRITERS: dict[str, Callable[[Telemetry, Path, Mapping[str, str]], Writer]] = {
    "jsonl": _json_lines,
    "tensorboard": lambda wanted, folder, versions: TensorBoard(),
}
