"""Values as consumers read them, and where two of them first differ: small numbers, worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mindspeed_moe.verify.values import Difference, first_difference, plain


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (None, None),
        (7, 7),
        (torch.tensor(7), 7),
        (np.int32(7), 7),
        (np.array(7), 7),
        (torch.tensor([3, 0], dtype=torch.int32), [3, 0]),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array([[1, 2], [3, 4]]).T, [[1, 3], [2, 4]]),
        ([5, 6], [5, 6]),
        (torch.zeros(0, dtype=torch.int64), []),
    ],
)
def test_a_plain_value_has_the_same_numbers(value: Any, wanted: Any) -> None:
    found = plain(value)
    if isinstance(found, np.ndarray):
        assert found.dtype == np.int64
        assert found.tolist() == wanted
    else:
        assert type(found) is type(wanted)
        assert found == wanted


@pytest.mark.parametrize("make", [lambda: torch.tensor([1, 2]), lambda: np.array([1, 2])])
def test_a_plain_value_is_a_copy(make: Any) -> None:
    """What is written over later must not change what was read."""
    value = make()
    found = plain(value)
    value[0] = 9
    assert isinstance(found, np.ndarray)
    assert found.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("found", "wanted", "difference"),
    [
        ([4, 5, 6], [4, 5, 6], None),
        ([4, 7, 8], [4, 5, 6], ((1,), 7, 5)),
        ([[1, 2], [3, 9]], [[1, 2], [3, 4]], ((1, 1), 9, 4)),
        ([[0, 2], [3, 9]], [[1, 2], [3, 4]], ((0, 0), 0, 1)),  # in the order of rows
        ([1, 2], [1, 2, 3], ((), "shape [2]", "shape [3]")),
        ([[1, 2]], [1, 2], ((), "shape [1, 2]", "shape [2]")),
        ([], [], None),
        (5, 5, None),
        (5, 6, ((), 5, 6)),
        (0, None, ((), 0, None)),
        (None, None, None),
        (None, [1, 2], ((), None, "shape [2]")),
        ([1, 2], None, ((), "shape [2]", None)),
        ([8], 8, ((), "shape [1]", 8)),
    ],
)
def test_the_first_difference_is_told(found: Any, wanted: Any, difference: Any) -> None:
    arrays = [np.array(one, dtype=np.int64) if isinstance(one, list) else one for one in (found, wanted)]
    expected = None if difference is None else Difference("input_splits", *difference)
    assert first_difference("input_splits", *arrays) == expected


def test_a_difference_names_attribute_index_and_both_values() -> None:
    assert str(Difference("chunk table", (3, 1), 17, 4)) == "chunk table[3, 1]: found 17, expected 4"
    assert str(Difference("num_out_tokens", (), None, 12)) == "num_out_tokens: found None, expected 12"
