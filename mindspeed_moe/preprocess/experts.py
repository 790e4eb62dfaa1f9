"""Where a layer's experts read their token counts: on the device, or on the host.

On the wrong side both work: `.tolist()` of a device tensor is a hidden wait for the whole device, and a host tensor
is copied to a grouped matmul that wants it on the device. Read from megatron-core 0.12.1 and 0.16.1,
`transformer/moe/experts.py`, and from MindSpeed's grouped matmul.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

# class of the experts -> device -> where it reads the counts
READS = {
    "SequentialMLP": {"npu": "host", "cuda": "host", "cpu": "host"},  # .tolist(), in a loop over experts
    "TEGroupedMLP": {"npu": "host", "cuda": "host", "cpu": "host"},  # .tolist(), for Transformer Engine's linear
    # On cuda the package grouped_gemm reads the host; on an NPU MindSpeed's grouped matmul stands in its place.
    "GroupedMLP": {"npu": "device", "cuda": "host", "cpu": "host"},
}


class ExpertsOf:
    """Remembers which experts a dispatcher serves, and in which layer; a dispatcher itself does not know.

    on_layer: called whenever a layer has been made. served: whether a dispatcher runs a program of the plugin's.
    """

    def __init__(self, on_layer: Callable[[], None] = lambda: None) -> None:
        self.served = True
        self._on_layer = on_layer
        self._experts: WeakKeyDictionary[Any, tuple[str, ...]] = WeakKeyDictionary()
        self._layers: WeakKeyDictionary[Any, weakref.ref[Any]] = WeakKeyDictionary()

    def note(self, dispatcher: Any, experts: Any, layer: Any = None) -> None:
        """Remember the class of the experts behind a dispatcher, and its bases; and the layer, if it is given."""
        self._experts[dispatcher] = tuple(kind.__name__ for kind in type(experts).__mro__)
        if layer is not None:
            self._layers[dispatcher] = weakref.ref(layer)

    def layer_made(self) -> None:
        """A layer was made, whoever serves its dispatcher."""
        self._on_layer()

    def layer_number(self, dispatcher: Any) -> int | None:
        """Return Megatron's number of the layer, which is set after it is made; None when it is not known.

        Layers of multi-token prediction are told apart where Megatron does: in 0.16 they are numbered after the others,
        and in GPT models from 0.17 on, which number them from 1 by themselves, here
        (`transformer/multi_token_prediction.py`).
        """
        known = self._layers.get(dispatcher)
        layer: Any = known() if known is not None else None
        number = getattr(layer, "layer_number", None)
        if not isinstance(number, int):
            return None
        return number + layer.config.num_layers if getattr(layer, "is_mtp_layer", False) else number

    def read_counts_on(self, dispatcher: Any, device: str) -> str | None:
        """Return `host` or `device`; None when the experts are not known."""
        known = (READS[name] for name in self._experts.get(dispatcher, ()) if name in READS)
        return next((where[device] for where in known), None)
