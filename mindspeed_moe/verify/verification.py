"""What all verified programs of a process share: when to verify, and what happens when something differs."""

from __future__ import annotations

import datetime
import itertools
import os
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from mindspeed_moe import lifetime
from mindspeed_moe.errors import VerificationError
from mindspeed_moe.log import logger
from mindspeed_moe.preprocess.steps import Steps
from mindspeed_moe.verify.alarm import Alarm, Report
from mindspeed_moe.verify.dump import FORMAT, SUFFIX, Dump, Meta, told_shapes, write_dump
from mindspeed_moe.verify.public import Compared
from mindspeed_moe.verify.record import LayerState, Record
from mindspeed_moe.verify.values import Difference, plain

FIRST_CALLS = 2  # of each layer: the second shows what the first handed out and somebody has written over
_ARRIVAL_S = 5.0  # that another rank's dump waits for copies that are under way


@dataclass(frozen=True)
class Schedule:
    """Which calls of a layer are verified. first: of them, or None for all of them. every: each of how many."""

    first: int | None
    every: int = 1

    def is_due(self, call: int) -> bool:
        """Return whether the call with this number, from 0, is verified; the same on every rank."""
        return (self.first is None or call < self.first) and call % self.every == 0


@dataclass(frozen=True)
class _Followed:
    layer: weakref.ref[LayerState]
    number: Callable[[], int | None]
    order: int


class Verification:
    """One for a process.

    folder: for dumps. configuration, versions: go into them.
    """

    def __init__(
        self,
        schedule: Schedule,
        steps: Steps,
        folder: Path,
        configuration: Mapping[str, Any],
        versions: Mapping[str, str],
    ) -> None:
        self.steps = steps
        self._schedule = schedule
        self._folder = folder
        self._configuration, self._versions = dict(configuration), dict(versions)
        self._followed: list[_Followed] = []
        self._orders = itertools.count()
        self._alarm = Alarm(self._answer)
        self._failed = ""
        self._calls = self._layers = 0
        self._ends_with_plugin = False

    def is_due(self, call: int) -> bool:
        """Return whether a layer's call with this number, from 0, is verified."""
        return self._schedule.is_due(call)

    def follow(self, layer: LayerState, number: Callable[[], int | None]) -> None:
        """A layer is called for the first time. number: tells Megatron's number of it."""
        if not self._ends_with_plugin:
            self._ends_with_plugin = True
            rank, process = _rank(), os.getpid()
            lifetime.at_end(lambda: self._tell_what_was_equal(rank, process))
        self._followed = [one for one in self._followed if one.layer() is not None]
        self._followed.append(_Followed(weakref.ref(layer), number, next(self._orders)))

    def all_equal(self, layer: LayerState) -> None:
        """A call of a layer was compared as a whole."""
        self._calls += 1
        if not layer.compared:
            layer.compared = True
            self._layers += 1

    def compared(self) -> Compared:
        """Return how much was compared so far."""
        return Compared(self._calls, self._layers)

    def raise_alarm(self) -> None:
        """Raise VerificationError when verification has failed, here or on another rank; called on each call."""
        if self._failed:  # somebody has caught the first: training must not go on
            raise VerificationError(self._failed)
        self._alarm.listen()
        report = self._alarm.heard
        if report is not None:
            self._alarm.main_ends()
            self._failed = f"rank {_rank()} ends with the others: {report['text']}{report['dump']}"
            raise VerificationError(self._failed)

    def fail(self, layer: LayerState, difference: Difference, why: str = "") -> None:
        """Leave a dump, tell every rank, and raise VerificationError. why: said behind the difference."""
        one, record = self._of(layer), layer.record
        assert record is not None
        self._alarm.main_ends()  # one dump a rank: this thread's
        heard = self._alarm.heard
        stamp = (
            heard["stamp"] if heard is not None else f"{datetime.datetime.now(datetime.timezone.utc):%Y%m%dT%H%M%SZ}"
        )
        where = f"rank {_rank()}, {_layer_name(one)}, {record.moment}"
        text = f"verification failed on {where}: {difference}{why}; implementation {record.implementation}"
        self._failed = text
        logger.critical("%s", text)  # before anything that can fail or take long
        report = {
            "text": text,
            "order": one.order,
            "call": record.moment.call,
            "group": _group(record),
            "stamp": stamp,
        }
        # Told before the dump: a disk that hangs must not keep it from the others.
        self._alarm.tell({**report, "dump": f"; its dump goes to {self._path(one, record, report)}"})
        self._failed = text + self._dump(one, record, report, difference.attribute)
        self._alarm.part()
        raise VerificationError(self._failed)

    def _tell_what_was_equal(self, rank: int, process: int) -> None:
        """rank: process groups may be gone by now. process: that was verified; a child that was forked was not."""
        self._ends_with_plugin = False
        calls, layers = self._calls, self._layers
        if calls and not self._failed and self._alarm.heard is None and os.getpid() == process:
            logger.info("verify: rank %d: nothing differed; calls compared: %d, layers: %d", rank, calls, layers)

    def _of(self, layer: LayerState) -> _Followed:
        return next(one for one in self._followed if one.layer() is layer)

    def _answer(self, report: Report) -> str:
        """In the alarm's thread: leave this rank's dump of the call that failed elsewhere, if it took part."""
        if _rank() not in report["group"]:
            return ""
        one = next((one for one in self._followed if one.order == report["order"]), None)
        layer = one.layer() if one is not None else None
        if one is None or layer is None:
            return " (this rank has no record of it)"
        until = time.monotonic() + _ARRIVAL_S
        # The main thread may still be on its way to this call, and its copies to the host.
        while (record := layer.of_call(report["call"])) is None or not _arrived(record):
            gone_by = record is None and layer.calls > report["call"] + 2  # records are kept
            if gone_by or time.monotonic() > until:
                break
            time.sleep(_ARRIVAL_S / 100)
        if record is None:
            return " (this rank has no record of it)"
        if not _arrived(record):
            return " (this rank's copies of it did not arrive: no dump)"
        return self._dump(one, record, report, None)

    def _path(self, one: _Followed, record: Record, report: Report) -> Path:
        name = f"{report['stamp']}-{_file_name(one)}-call{record.moment.call:06d}-rank{_rank():05d}{SUFFIX}"
        return self._folder / name

    def _dump(self, one: _Followed, record: Record, report: Report, attribute: str | None) -> str:
        """Write a dump; returns where it is, or why there is none: the difference must be told whatever happens."""
        path = self._path(one, record, report)
        try:
            record.wait()
            write_dump(path, self._as_dump(one, record, report, attribute))
        except Exception as error:
            return f"; no dump could be written to {path}: {error}"
        return f"; dump: {path} (mindspeed-moe replay {path})"

    def _as_dump(self, one: _Followed, record: Record, report: Report, attribute: str | None) -> Dump:
        layout, moment = record.site.layout, record.moment
        # Copies first: the main thread may go on with the record.
        found, wanted = dict(record.found), {name: plain(value) for name, value in dict(record.wanted).items()}
        routing_map = record.routing_map.numpy()
        every = None if record.every is None else record.every.numpy().reshape(-1, layout.num_experts)
        meta = Meta(
            format=FORMAT,
            run=self._alarm.run,
            rank=_rank(),
            world_size=dist.get_world_size() if dist.is_initialized() else 1,
            group=_group(record),
            num_experts=layout.num_experts,
            ep_size=layout.ep_size,
            tp_size=layout.tp_size,
            ep_rank=layout.ep_rank,
            tp_rank=layout.tp_rank,
            tokens=len(routing_map),
            topk=record.topk,
            layer=one.number(),
            order=one.order,
            call=moment.call,
            step=moment.step,
            micro_batch=moment.micro_batch,
            gradients=moment.gradients,
            implementation=record.implementation,
            attribute=attribute,
            told=report["text"],
            found=told_shapes(found),
            wanted=told_shapes(wanted),
            configuration=self._configuration,
            versions=self._versions,
        )
        return Dump(meta, routing_map.astype(np.bool_), every, found, wanted)


def _arrived(record: Record) -> bool:
    """Whether a record's copies are there; asked in a thread that may not have set its device."""
    if record.enter is not None:
        record.enter()
    return record.is_there


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _group(record: Record) -> list[int]:
    full = record.site.full_group
    return [_rank()] if full is None else list(dist.get_process_group_ranks(full))


def _layer_name(one: _Followed) -> str:
    number = one.number()
    return f"layer {number}" if number is not None else f"layer number {one.order + 1} in order of first calls"


def _file_name(one: _Followed) -> str:
    number = one.number()
    return f"layer{number:03d}" if number is not None else f"called{one.order + 1:03d}"
