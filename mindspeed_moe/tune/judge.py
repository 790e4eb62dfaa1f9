"""Who wins, and whether it is more than noise. Pure: durations in, a verdict out, the same on every rank."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEAST_GAIN = 0.02  # of the defaults' median: less is not worth a file
CONFIDENCE = 0.99  # that no difference between any two candidates is taken for one that it is not


@dataclass(frozen=True)
class Verdict:
    """winner: the defaults' name unless another is faster beyond the noise. reason: in words, with the figures.

    certain: whether no candidate can still turn out to be faster than the winner's rivals allow: another one has won,
    or none can be better than the defaults by as much as counts.
    """

    winner: str
    certain: bool
    reason: str


def judge(durations: Mapping[str, Sequence[float]], deviations: Mapping[str, int]) -> Verdict:
    """Compare all with the defaults, round by round, and the fastest with each other.

    durations: name -> microseconds, one a round, all measured in the same rounds. deviations: name -> how many
    choices differ from the defaults', 0 for the defaults. A gain counts when the whole interval of the median of the
    rounds' differences lies above LEAST_GAIN of the defaults' median. Among those that gain and cannot be told apart
    from the fastest, the one with the fewest deviations wins, so that no single choice rests on noise.
    """
    usual = next(name for name, number in deviations.items() if number == 0)
    medians = {name: statistics.median(taken) for name, taken in durations.items()}
    least = LEAST_GAIN * medians[usual]
    rivals = len(durations) - 1

    def gain(slow: str, fast: str) -> tuple[float, float]:
        differences = [one - other for one, other in zip(durations[slow], durations[fast], strict=True)]
        return median_interval(sorted(differences), rivals)

    gains = {name: gain(usual, name) for name in durations if name != usual}
    better = [name for name, (low, _) in gains.items() if low > least]
    if not better:
        certain = all(high <= least for _, high in gains.values())
        fastest = min(medians, key=lambda name: medians[name])
        told = f"defaults: {medians[usual]:.1f} us"
        if fastest == usual:
            return Verdict(usual, certain, f"nothing is faster than the defaults ({told})")
        low, high = gains[fastest]
        told = f"{fastest}: {medians[fastest]:.1f} us, {told}, gain {low:.1f} to {high:.1f} us"
        return Verdict(usual, certain, f"no gain beyond the noise and {LEAST_GAIN:.0%}: the defaults stay ({told})")
    fastest = min(better, key=lambda name: medians[name])
    alike = [name for name in better if name == fastest or gain(name, fastest)[0] <= least]
    winner = min(alike, key=lambda name: (deviations[name], medians[name]))
    low, high = gains[winner]
    told = f"{winner}: {medians[winner]:.1f} us, defaults: {medians[usual]:.1f} us, gain {low:.1f} to {high:.1f} us"
    return Verdict(winner, True, told)


def median_interval(ordered: Sequence[float], comparisons: int = 1) -> tuple[float, float]:
    """Return the interval of the median of values in ascending order, by order statistics.

    comparisons: how many such intervals are looked at together: CONFIDENCE is that all of them hold. With few values
    the interval is that of all values.
    """
    count = len(ordered)
    normal = statistics.NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2 / max(comparisons, 1))
    reach = math.ceil(normal * math.sqrt(count) / 2)
    return ordered[max(0, count // 2 - reach)], ordered[min(count - 1, count // 2 + reach)]
