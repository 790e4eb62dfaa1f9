"""Telemetry folders for tests: lines as the format says, and a generator of whole runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Line = Mapping[str, Any]
_BYTES = 8192  # of a row: hidden size 4096 in bfloat16


def header(rank: int, **fields: Any) -> dict[str, Any]:
    return {
        "kind": "header",
        "format": 1,
        "rank": rank,
        "world_size": max(8, rank + 1),
        "segment": 1,
        "started": "2026-11-26T10:00:00Z",
        "mindspeed_moe": "0.1.0",
        "megatron_core": "0.16.1",
        "torch": "2.13.0",
        "device": "cpu",
    } | fields


def layer_line(layer: int, experts: int, ep: int, ep_rank: int, **fields: Any) -> dict[str, Any]:
    """The group is ranks 0 to EP * TP - 1 unless `group` says otherwise."""
    tp = fields.get("tp", 1)
    return {
        "kind": "layer",
        "layer": layer,
        "experts": experts,
        "topk": 2,
        "ep": ep,
        "tp": tp,
        "ep_rank": ep_rank,
        "tp_rank": 0,
        "group": list(range(ep * tp)),
    } | fields


def load(step: int, layer: int, tokens: Iterable[int], sent_bytes: Iterable[int], **fields: Any) -> dict[str, Any]:
    tokens = list(tokens)
    return {
        "kind": "load",
        "step": step,
        "layer": layer,
        "calls": 1,
        "tokens": tokens,
        "imbalance": max(tokens) * len(tokens) / sum(tokens) if any(tokens) else 1.0,
        "routed": sum(tokens),
        "dropped": 0,
        "sent_bytes": list(sent_bytes),
        "padded": False,
    } | fields


def text_of(lines: Iterable[Line]) -> bytes:
    return "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()


def write_segment(folder: Path, rank: int, number: int, lines: Iterable[Line]) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / f"rank{rank:05d}.{number:06d}.jsonl"
    path.write_bytes(text_of(lines))
    return path


@dataclass(frozen=True)
class Run:
    """A made-up training run: `copies` groups of EP x TP ranks; popularity of experts drifts from step to step."""

    layers: tuple[int, ...] = (3, 4)
    experts: int = 16
    topk: int = 2
    ep: int = 4
    tp: int = 1
    copies: int = 1
    steps: tuple[int, ...] = tuple(range(1, 21))
    rows: int = 4096  # that a layer's experts receive in a step, over all ranks of a group
    seed: int = 0
    segment_steps: int = 1000

    @property
    def world_size(self) -> int:
        return self.ep * self.tp * self.copies

    def tokens(self, layer: int, copy: int) -> np.ndarray[Any, Any]:
        """[steps, E]"""
        random = np.random.default_rng((self.seed, layer, copy))
        drift, pushes = np.zeros(self.experts), random.normal(0, 0.06, (len(self.steps), self.experts))
        drifts = np.array([drift := 0.97 * drift + push for push in pushes])
        heat = np.exp(drifts + random.normal(0, 0.35, self.experts))
        return random.poisson(self.rows * heat / heat.sum(axis=1, keepdims=True))

    def lines(self, rank: int, **fields: Any) -> Iterator[list[Line]]:
        """Yield the lines of each segment of a rank."""
        copy, place = divmod(rank, self.ep * self.tp)
        ep_rank, tp_rank = divmod(place, self.tp)
        local = self.experts // self.ep
        group = [copy * self.ep * self.tp + one for one in range(self.ep * self.tp)]
        rows = {layer: self.tokens(layer, copy) for layer in self.layers}
        own = {layer: rows[layer][:, ep_rank * local : (ep_rank + 1) * local].tolist() for layer in self.layers}
        # [steps, EP]: of what each peer receives, every rank of the group sends about the same part.
        sent = {layer: rows[layer].reshape(len(self.steps), self.ep, local).sum(2) for layer in self.layers}
        random = np.random.default_rng((self.seed, rank))
        for begin in range(0, len(self.steps), self.segment_steps):
            lines: list[Line] = [header(rank, world_size=self.world_size)]
            for layer in self.layers:
                shape = {"topk": self.topk, "tp": self.tp, "tp_rank": tp_rank, "group": group}
                lines.append(layer_line(layer, self.experts, self.ep, ep_rank, **shape))
            for at in range(begin, min(begin + self.segment_steps, len(self.steps))):
                for layer in self.layers:
                    part = random.uniform(0.9, 1.1, self.ep) * _BYTES / (self.ep * self.tp)
                    to_peers = (sent[layer][at] * part).astype(int).tolist()
                    lines.append(load(self.steps[at], layer, own[layer][at], to_peers, **fields))
            yield lines

    def write(self, folder: Path, **fields: Any) -> Path:
        """Write all ranks; fields: of every load record."""
        for rank in range(self.world_size):
            for number, lines in enumerate(self.lines(rank, **fields), 1):
                write_segment(folder, rank, number, lines)
        return folder
