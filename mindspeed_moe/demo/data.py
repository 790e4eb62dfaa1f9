"""Text as bytes, and batches of it: a token is a byte."""

from __future__ import annotations

import importlib
import random
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mindspeed_moe.demo.settings import Model
from mindspeed_moe.errors import ConfigError
from mindspeed_moe.files import open_regular

DEFAULT_TEXT = "pydoc_data.topics"  # the language reference that CPython ships: some 700 kB of English

Bytes = npt.NDArray[np.uint8]


def text_name(path: Path | None) -> str:
    """Return what a person calls the text."""
    return str(path) if path else f"{DEFAULT_TEXT} of CPython"


def load_text(path: Path | None, sequence: int) -> Bytes:
    """Return a text as an array of bytes, uint8; a file is mapped into memory, so processes share it.

    Raises ConfigError when it cannot be read, or is too short for one sequence and the byte that follows it.
    """
    if path is None:
        text = np.frombuffer(_default_text(), np.uint8)
    else:
        try:
            with open_regular(path) as file:  # an empty file cannot be mapped
                text = np.memmap(file, np.uint8, mode="r") if file.read(1) else np.empty(0, np.uint8)
        except (OSError, ValueError) as error:
            raise ConfigError(f"--text {path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(text) <= sequence:
        raise ConfigError(f"--text {path}: has {len(text)} bytes; at least {sequence + 1} are needed")
    return text


def _default_text() -> bytes:
    try:
        topics: dict[str, str] = importlib.import_module(DEFAULT_TEXT).topics
    except ImportError as error:
        raise ConfigError(f"this Python comes without {DEFAULT_TEXT}: name a text with --text FILE") from error
    return "\n\n".join(topics[name] for name in sorted(topics)).encode()


def batch(text: Bytes, model: Model, step: int, rank: int, ranks: int) -> npt.NDArray[np.int64]:
    """Return the sequences of one data-parallel rank in a step, [batch, sequence + 1] int64.

    Inputs are all columns but the last, labels all but the first. Positions are drawn for all ranks at once, so that
    the union of the ranks' batches depends on the seed and the step only.
    """
    draw = random.Random(model.seed * 1_000_003 + step)
    starts = [draw.randrange(len(text) - model.sequence) for _ in range(ranks * model.batch)]
    own = starts[rank * model.batch : (rank + 1) * model.batch]
    return np.stack([text[start : start + model.sequence + 1] for start in own]).astype(np.int64)
