"""A program that is checked while it runs: the chosen implementation, with the witness beside it.

The host never waits for the witness while the chosen implementation has a value on its way: that would hide exactly the
mistake of reading it too early. Kernels and copies of the witness are only enqueued; their results are waited for once
the values to be compared have been read.
"""

from __future__ import annotations

import functools
import logging
import weakref
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from mindspeed_moe import log
from mindspeed_moe.devices.accelerator import Accelerator
from mindspeed_moe.errors import CountOverflowError
from mindspeed_moe.patching.target import locate
from mindspeed_moe.preprocess.attributes import BEFORE_FINISH
from mindspeed_moe.preprocess.experts import ExpertsOf
from mindspeed_moe.preprocess.program import Program
from mindspeed_moe.preprocess.splits import MAX_ROWS
from mindspeed_moe.verify.reads import CAPACITY, COUNTS, NAMES, ROWS, TABLE, must_be_there, read_behind, rows_are_read
from mindspeed_moe.verify.record import LayerState, Moment, Record
from mindspeed_moe.verify.values import Difference, plain
from mindspeed_moe.verify.verification import Verification
from mindspeed_moe.verify.witness import Shadow, Witness


class Verified:
    """Stands for `inner`. accelerator: None where device memory is host memory. implementation: the inner's name."""

    waits_later = True  # its points are where values are read

    def __init__(
        self, inner: Program, accelerator: Accelerator | None, verification: Verification, implementation: str
    ) -> None:
        self.inner = inner
        self.sites = inner.sites
        self._accelerator = accelerator
        self._verification = verification
        self._implementation = implementation
        self._witness = Witness(inner.sites, accelerator)
        self._layers: WeakKeyDictionary[Any, LayerState] = WeakKeyDictionary()

    def preprocess(self, dispatcher: Any, routing_map: torch.Tensor) -> torch.Tensor | None:
        """Run the chosen implementation, and the reference where this call is due for it."""
        verification = self._verification
        verification.raise_alarm()
        layer = self._layers.get(dispatcher)
        if layer is None:
            layer = self._layers[dispatcher] = LayerState(Shadow(dispatcher))
            verification.follow(layer, functools.partial(_layer_number, self.sites.experts, weakref.ref(dispatcher)))
        gradients = torch.is_grad_enabled()
        step = verification.steps.forward(gradients)
        moment = Moment(layer.calls, step, layer.count(step, gradients), gradients)
        layer.calls += 1
        self._judge_leftovers(layer)
        layer.done = True
        if not verification.is_due(moment.call):
            layer.forget(moment.call)
            return self.inner.preprocess(dispatcher, routing_map)
        table = vars(dispatcher).get(self.sites.attributes.table)
        gave_up = None
        try:
            counts = self.inner.preprocess(dispatcher, routing_map)
        except CountOverflowError as error:  # after its exchange, so that the reference's is still to come on all ranks
            counts, gave_up = None, error
        new_table = vars(dispatcher).get(self.sites.attributes.table)
        handed = {COUNTS: counts, TABLE: None if new_table is table else new_table}
        left = self._standing(dispatcher)
        record = self._run_witness(layer, dispatcher, routing_map, handed, moment)
        record.left = left
        layer.keep(record)
        layer.done = False
        if gave_up is not None:
            self._explain(layer, dispatcher, gave_up)
        self._look_back(layer)
        return counts

    def _judge_leftovers(self, layer: LayerState) -> None:
        """Of a call that nobody waited for, what was read of it all the same."""
        record = layer.record
        if record is None or layer.done:
            return
        for name, value in tuple(record.early.items()):
            record.wait()
            self._refuse(layer, record.judge(name, value, record.wanted[name]))

    def host_copies(self, dispatcher: Any, point: str, tokens_per_expert: Any) -> Any:
        """Let the chosen implementation wait, then compare what is read behind this point."""
        layer = self._layers.get(dispatcher)
        record = None if layer is None or layer.done else layer.record
        before = {} if record is None else self._look_for_others(record, dispatcher)
        try:
            counts = self.inner.host_copies(dispatcher, point, tokens_per_expert)
        except CountOverflowError as error:
            if layer is not None and not layer.done:
                self._explain(layer, dispatcher, error)
            raise
        if layer is not None and record is not None:
            ours = {name: now for name, now in self._standing(dispatcher).items() if now is not before[name]}
            record.left |= ours
            record.theirs -= ours.keys()
            self._compare(layer, dispatcher, point, counts)
        return counts

    def _standing(self, dispatcher: Any) -> dict[str, Any]:
        """Return what a dispatcher holds of what the plugin leaves there, by name."""
        held = vars(dispatcher)
        return {name: held.get(self._attribute(name)) for name in NAMES if name != COUNTS}

    def _look_for_others(self, record: Record, dispatcher: Any) -> dict[str, Any]:
        """Note, and tell once, what somebody else has changed since it was left; returns what stands there now."""
        standing = self._standing(dispatcher)
        for name, now in standing.items():
            left = record.left[name]
            if now is left or name in record.theirs or (isinstance(now, int) and now == left):
                continue
            record.theirs.add(name)
            number = _layer_number(self.sites.experts, weakref.ref(dispatcher))
            log.once(
                logging.WARNING,
                f"verify: {self._attribute(name)} of layer {number} is not what mindspeed_moe left there "
                f"({_short(left)}) but {_short(now)}; at preprocess stands {locate(type(dispatcher).preprocess)}. What "
                "was left is compared; theirs is not",
                f"{__name__}: {name}",
            )
        return standing

    def _attribute(self, name: str) -> str:
        return self.sites.attributes.table if name == TABLE else name

    def under_way(self, dispatcher: Any) -> bool:
        """As the chosen implementation says."""
        return self.inner.under_way(dispatcher)

    def _run_witness(
        self, layer: LayerState, dispatcher: Any, routing_map: torch.Tensor, handed: dict[str, Any], moment: Moment
    ) -> Record:
        """Enqueue the reference, and copies of what the chosen implementation has handed out on the device."""
        shadow, table = layer.shadow, self.sites.attributes.table
        shadow.forget((*NAMES, table))
        counts = self._witness.preprocess(shadow, routing_map)
        wanted = {name: getattr(shadow, name) for name in NAMES if shadow.written(name)}
        if shadow.written(table):
            wanted[TABLE] = getattr(shadow, table)
        wanted[COUNTS] = counts
        record = Record(
            moment=moment,
            site=self.sites.of(dispatcher),
            implementation=self._implementation,
            topk=dispatcher.config.moe_router_topk,
            routing_map=self._witness.to_host(routing_map),
            every=None if shadow.every is None else self._witness.to_host(shadow.every),
            wanted={
                name: self._witness.to_host(value) if _on_device(value) else value for name, value in wanted.items()
            },
            # As a reader on the current stream would see them now, whatever comes later.
            seen={name: self._witness.to_host(value) for name, value in handed.items() if _on_device(value)},
            handed=handed,
        )
        if self._accelerator is not None:
            record.enter = self._accelerator.enter_here()
            record.arrived = self._accelerator.event()
            record.arrived.record()
        return record

    def _explain(self, layer: LayerState, dispatcher: Any, error: CountOverflowError) -> None:
        """The chosen implementation has met too large counts. Fail, unless they are what the reference says too."""
        record = layer.record
        assert record is not None
        record.wait()
        most = [np.sum(np.asarray(plain(record.wanted[name]))) for name in (ROWS, COUNTS)]  # what is sent, and received
        if max(most) > MAX_ROWS:
            raise error
        for name in tuple(record.wanted):
            value = self._held(record, dispatcher, name, None)
            self._refuse(layer, record.judge(name, value, record.wanted[name]), f" (it gave up: {error})")

    def _compare(self, layer: LayerState, dispatcher: Any, point: str, counts: Any) -> None:
        record, attributes = layer.record, self.sites.attributes
        assert record is not None
        early = self.inner.under_way(dispatcher)
        for name in read_behind(point, attributes.table):
            if name not in record.wanted:
                continue
            value = self._held(record, dispatcher, name, counts)
            if not early:
                self._judge(layer, name, value)
            elif value is None:
                wanted = record.wanted[name] is not None and name != COUNTS
                if wanted and must_be_there(name, point, attributes, dispatcher):
                    self._judge(layer, name, value)
            elif not _on_device(value):
                # Read now; to compare it now would make the host wait for what is still to be read too early.
                record.early.setdefault(name, plain(value))
        if not early and (point == BEFORE_FINISH or attributes.returns_at_once):
            self._settle(layer, dispatcher, counts)

    def _settle(self, layer: LayerState, dispatcher: Any, counts: Any) -> None:
        """Everything has been handed out: compare all of it, and watch over what stays with its readers."""
        record = layer.record
        assert record is not None
        if self.sites.attributes.returns_at_once:  # every later read is looked at too
            if COUNTS in record.found:
                return
        else:
            layer.done = True
        self._look_back(layer)
        rows = vars(dispatcher).get(ROWS) if ROWS in record.theirs else record.wanted.get(ROWS)
        if isinstance(rows, int) and CAPACITY not in record.wanted and rows_are_read(self.sites.attributes, dispatcher):
            # T * topk rows were promised before anything was counted: the routing map must hold as many.
            record.wait()
            self._refuse(layer, record.judge("sum of the routing map", record.routing_map.sum(), rows))
        for name in tuple(record.wanted):
            if name in NAMES:
                value = self._held(record, dispatcher, name, counts)
                self._judge(layer, name, value)
                if not _on_device(value):
                    layer.keep_in_view(name, record.moment.call, value, record.found[name])
        if layer.done:
            record.left = {}  # else what nobody holds any more would be watched
        self._verification.all_equal(layer)

    def _held(self, record: Record, dispatcher: Any, name: str, counts: Any) -> Any:
        """Return what the next reader gets under a name; where somebody else has changed it, what was left for it."""
        if name == COUNTS:
            return record.handed[COUNTS] if self.sites.attributes.returns_at_once else counts
        return record.left[name] if name in record.theirs else vars(dispatcher).get(self._attribute(name))

    def _judge(self, layer: LayerState, name: str, value: Any) -> None:
        """Compare what a reader gets with what the reference says, and what it got on the device as well."""
        record = layer.record
        assert record is not None
        wanted = record.wanted[name]
        if name in record.early:
            record.wait()
            self._refuse(layer, record.judge(name, record.early.pop(name), wanted))
        if not (isinstance(value, int) and isinstance(wanted, int)):
            record.wait()
        if name in record.seen:
            self._refuse(layer, record.judge(name, record.seen[name], wanted))
            if value is record.handed[name]:
                return  # what stood there then stands there now: another copy would make the host wait once more
        self._refuse(layer, record.judge(name, value, wanted))

    def _look_back(self, layer: LayerState) -> None:
        """What earlier calls handed out must not have changed: its memory would have been used again."""
        record = layer.record
        assert record is not None
        for name, value, wanted in layer.still_held():
            self._refuse(layer, record.judge_again(name, value, wanted))

    def _refuse(self, layer: LayerState, difference: Difference | None, why: str = "") -> None:
        if difference is not None:
            layer.done = True
            self._verification.fail(layer, difference, why)


def _layer_number(experts: ExpertsOf, dispatcher: weakref.ref[Any]) -> int | None:
    found = dispatcher()
    return None if found is None else experts.layer_number(found)


def _short(value: Any) -> str:
    """Return a value as it prints, without asking a device for it."""
    return f"a tensor on {value.device}" if _on_device(value) else repr(value)[:80]


def _on_device(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type != "cpu"
