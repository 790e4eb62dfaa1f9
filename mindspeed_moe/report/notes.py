"""What the reader of a report must know before believing it: what is damaged, missing, unknown or binned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mindspeed_moe.report.loads import LayerLoad
from mindspeed_moe.report.reader import Telemetry
from mindspeed_moe.report.segments import Damage
from mindspeed_moe.report.summary import Summary

_SHOWN = 6  # of a long list


def damage_notes(damage: Damage) -> list[str]:
    """Return sentences about lines and files that were skipped."""
    notes = []
    if damage.truncated:
        files = _count(damage.truncated, "file ends", "files end")
        notes.append(f"{files} in the middle of a line, as a killed run leaves them; these lines were skipped.")
    if damage.malformed:
        lines = _count(damage.malformed, "line was", "lines were")
        notes.append(f"{lines} skipped because of damage or an unknown form.")
    if damage.unreadable:
        notes.append(f"{_count(damage.unreadable, 'file', 'files')} could not be read to the end.")
    if damage.first:
        notes.append(f"The first place: {damage.first}")
    return notes


def run_notes(telemetry: Telemetry) -> list[str]:
    """Return sentences about other runs in the folder."""
    notes = []
    for one in telemetry.others[-_SHOWN:]:
        records = _count(one.records, "record is", "records are")
        word = f", `run` {one.word}" if one.word else ""
        told = f"begun {one.started or 'nobody says when'}, steps {one.first:,} to {one.last:,}{word}"
        notes.append(f"{records} not shown, of an older run ({told}): a later run began again in the same folder.")
    if len(telemetry.others) > _SHOWN:
        notes.append(f"Nor are those of {len(telemetry.others) - _SHOWN} runs before these.")
    return notes


def notes_of(summary: Summary) -> list[str]:
    """Return all sentences, the gravest first."""
    return [
        *_unknown(summary),
        *_missing(summary),
        *_unnumbered(summary),
        *run_notes(summary.telemetry),
        *_replaced(summary),
        *damage_notes(summary.telemetry.damage),
    ]


def binning_of(summary: Summary) -> str:
    """Return how steps became columns."""
    axis = summary.axis
    if axis.per_column == 1:
        return "Every recorded step has its own column."
    columns = int((axis.first >= 0).sum())
    return (
        f"The {len(axis.steps):,} recorded steps are drawn in {columns:,} columns of up to {axis.per_column} steps; "
        f"a column shows the mean over its steps."
    )


def world_size(summary: Summary) -> int:
    """Return the number of ranks, by the newest header; at least those that have a file."""
    told = max(summary.telemetry.headers.values(), key=lambda one: one.started, default=None)
    return max(told.world_size if told else 0, 1 + max(summary.telemetry.ranks))


def ranges(numbers: Iterable[int]) -> str:
    """Return rising numbers as ranges, such as `0-3, 7`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    texts = [f"{first}" if first == last else f"{first}-{last}" for first, last in parts]
    more = f" and {len(texts) - _SHOWN} more ranges" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more


def _unknown(summary: Summary) -> list[str]:
    padded = [one for one in summary.layers if one.padded]
    if not padded:
        return []
    return [
        f"Drop and pad was on in {_layers(padded, summary)}: the counts include padding rows, so the real load is not "
        f"known there, nor what was dropped."
    ]


def _missing(summary: Summary) -> list[str]:
    notes = []
    axis, world = summary.axis, world_size(summary)
    absent = sorted(set(range(world)) - set(summary.telemetry.ranks))
    if absent:
        notes.append(f"Of {world:,} ranks these left no file here: {ranges(absent)}.")
    partial = [one for one in summary.layers if one.complete < one.steps]
    if partial:
        steps, every = (sum(one.steps - one.complete for one in partial), sum(one.steps for one in summary.layers))
        silent = ranges(sorted({ep_rank for one in partial for ep_rank in one.silent}))
        notes.append(
            f"In {steps / every:.1%} of the steps (all layers together) a rank did not report though others did; EP "
            f"ranks concerned: {silent}. These are gaps in the heat map, and the imbalance is not known there."
        )
    if gaps := axis.gaps:
        shown = "; ".join(f"between {before:,} and {after:,}" for before, after in gaps[:_SHOWN])
        more = f"; and {len(gaps) - _SHOWN} more" if len(gaps) > _SHOWN else ""
        notes.append(f"No steps were recorded {shown}{more}. An empty column marks each of these places.")
    short = [one for one in summary.layers if one.steps < len(axis.steps)]
    if short:
        notes.append(f"Some of the {len(axis.steps):,} steps have no record at all of {_layers(short, summary)}.")
    return notes


def _unnumbered(summary: Summary) -> list[str]:
    placed = [one for one in summary.layers if not one.numbered]
    if not placed:
        return []
    return [
        f"{_layers(placed, summary).capitalize()}: numbered by first calls, usually because the model was built before "
        f"the plugin was enabled. Layers of different pipeline stages then have the same number and are added up."
    ]


def _replaced(summary: Summary) -> list[str]:
    notes = []
    last, newest = int(summary.axis.steps[-1]), summary.telemetry.last_written
    if last > newest:
        notes.append(
            f"Steps {newest + 1:,} to {last:,} are of an older run: the newest began again and has come to {newest:,}."
        )
    if repeated := summary.telemetry.repeated:
        records = _count(repeated, "record was", "records were")
        notes.append(f"{records} replaced by a later one of the same step, layer and rank: several runs wrote here.")
    if stale := sum(one.stale for one in summary.layers):
        notes.append(
            f"{_count(stale, 'record', 'records')} of an older run with another layout left out, because a newer run "
            f"contradicts them."
        )
    return notes


def _layers(some: Sequence[LayerLoad], summary: Summary) -> str:
    if len(some) == len(summary.layers):
        return "every layer" if len(some) > 1 else f"layer {some[0].layer}"
    return f"layer{'s' if len(some) > 1 else ''} {ranges(one.layer for one in some)}"


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
