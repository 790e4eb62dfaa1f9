"""Scalars for TensorBoard, through the writer that Megatron's training has on one of its ranks."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

from mindspeed_moe import log
from mindspeed_moe.telemetry.load import Load

_GLOBALS = "megatron.training.global_vars"


class TensorBoard:
    """Adds moe_load/layer_N/... for the experts of this rank; does nothing on ranks without a writer."""

    def write(self, loads: Sequence[Load]) -> None:
        """Add the scalars of one training step."""
        writer = _megatrons_writer()
        if writer is None:
            return
        for load in loads:
            line, name = load.line(), f"moe_load/layer_{load.facts.layer}"
            writer.add_scalar(f"{name}/imbalance", line["imbalance"], load.step)
            writer.add_scalar(f"{name}/most_tokens", load.most, load.step)
            writer.add_scalar(f"{name}/sent_bytes", int(line["sent_bytes"].sum()), load.step)
            if load.dropped is not None:
                writer.add_scalar(f"{name}/dropped", load.dropped, load.step)

    def close(self) -> None:
        """The writer is Megatron's to close."""


def _megatrons_writer() -> Any:
    module = sys.modules.get(_GLOBALS)
    if module is None:
        log.once(
            logging.WARNING,
            f"telemetry: writer tensorboard: {_GLOBALS} is not loaded, so there is no writer of Megatron's",
        )
        return None
    return module.get_tensorboard_writer()
