"""`mindspeed-moe demo`: a small GPT with MoE layers on real text, with every implementation of preprocess."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from mindspeed_moe.cli.numbers import whole
from mindspeed_moe.demo.places import PLACES
from mindspeed_moe.demo.settings import ALLTOALL, DISPATCHERS, IMPLEMENTATIONS, SEQ, TELEMETRY, Settings, settle
from mindspeed_moe.errors import ConfigError
from mindspeed_moe.files import not_written_out, remove, require_writable
from mindspeed_moe.tables import WIDTH

FAILED = 1
REPORT = "report.html"


@click.command()
@click.option("--ep", type=whole(1), default=2, show_default=True, help="Expert parallel size.")
@click.option("--tp", type=whole(1), default=1, show_default=True, help="Tensor parallel size of the dense part.")
@click.option("--etp", type=whole(1), help=f"Tensor parallel size of the experts.  [default: 2; npu: 1; {SEQ}: tp]")
@click.option("--processes", type=whole(1), help="Number of processes; by default the fewest that the sizes allow.")
@click.option("--steps", type=whole(1), help="Training steps with each implementation.  [default: 200; npu: 20]")
@click.option("--text", type=click.Path(path_type=Path), help="Train on this file instead of CPython's documentation.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo-out"), show_default=True, help="Folder.")
@click.option("--implementations", default=",".join(IMPLEMENTATIONS), show_default=True, help="Names, with commas.")
@click.option(
    "--dispatcher",
    type=click.Choice(DISPATCHERS),
    default=ALLTOALL,
    show_default=True,
    help=f"Megatron's token dispatcher; {SEQ} ends with megatron-core 0.12.",
)
@click.option(
    "--verify",
    type=click.Choice(("off", "first", "always")),
    default="off",
    show_default=True,
    help="Compare what packed leaves with the reference while it trains.",
)
@click.option("--device", type=click.Choice(list(PLACES)), default="cpu", show_default=True, help="Where to train.")
@click.option("--simulated", is_flag=True, help="With --device npu: on the simulated Ascend runtime, beside the cpu.")
@click.option("--within-simulation", is_flag=True, hidden=True)  # how --simulated calls itself
def demo(
    ep: int,
    tp: int,
    etp: int | None,
    processes: int | None,
    steps: int | None,
    text: Path | None,
    out: Path,
    implementations: str,
    dispatcher: str,
    verify: str,
    device: str,
    simulated: bool,
    within_simulation: bool,
) -> int:
    """Train a small GPT with MoE layers on local processes, with stock, reference and packed preprocess in turn.

    All start from the same weights and see the same text, so that their losses must be equal to the last bit.
    Leaves summary.json, loss.png, telemetry of packed's expert load and a report.html of it in the folder of --out.
    Exit code 0: equal; 1: different, or a process failed; 2: the options or the installation are unusable.
    """
    place = PLACES[device]
    if etp is None:
        etp = tp if dispatcher == SEQ else place.etp
    settings = settle(
        tp=tp,
        ep=ep,
        etp=etp,
        processes=processes,
        steps=place.steps if steps is None else steps,
        implementations=tuple(name.strip() for name in implementations.split(",")),
        text=text,
        device=device,
        dispatcher=dispatcher,
        verify=verify,
        out=out,
    )
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    if simulated:
        return _simulated_beside_cpu(settings, out, console)
    _check_installation(settings)
    _check_text(settings)
    _check_folder(out)
    _forget_earlier_runs(out)
    if within_simulation:
        console.print("on the simulated npu: losses count, times do not")
    summary = _train(settings, console, times=not within_simulation)
    return FAILED if summary is None else _tell(summary, out, console, report=not within_simulation)


def _simulated_beside_cpu(settings: Settings, out: Path, console: Console) -> int:
    """Train on the simulated npu in processes of their own, then on the cpu, and hold the losses side by side."""
    from mindspeed_moe.demo.simulated import beside_cpu, comparison_table, run_simulated

    if settings.device != "npu":
        raise ConfigError(f"--simulated: goes with --device npu, not {settings.device}")
    on_cpu = replace(settings, device="cpu")
    _check_installation(on_cpu)
    _check_text(settings)
    _check_folder(out)
    _forget_earlier_runs(out)
    npu = run_simulated(settings)
    if npu is None:
        return FAILED
    cpu = _train(on_cpu, console)
    if cpu is None:
        return FAILED
    summary = beside_cpu(npu, cpu)
    console.print(comparison_table(summary))
    return _tell(summary, out, console)


def _check_text(settings: Settings) -> None:
    from mindspeed_moe.demo.data import load_text

    load_text(settings.text, settings.model.sequence)


def _check_installation(settings: Settings) -> None:
    """Raise what enable() would raise in every process, before any is started."""
    from mindspeed_moe.config import load_config
    from mindspeed_moe.contract.generations import WITH_LEGACY
    from mindspeed_moe.dispatch_table import STOCK
    from mindspeed_moe.environment import probe_environment
    from mindspeed_moe.planning import decide

    environment = probe_environment()
    if environment.torch.version is None:
        raise ConfigError(f"torch: {environment.torch}")
    _, generation, _ = decide(load_config(settings.configuration(STOCK)), environment)
    if settings.dispatcher == SEQ and generation.name not in WITH_LEGACY:
        raise ConfigError(
            f"--dispatcher {SEQ}: megatron-core {environment.megatron_core} has no such dispatcher; allowed: {ALLTOALL}"
        )
    for name in settings.implementations:
        decide(load_config(settings.configuration(name)), environment)


def _check_folder(out: Path) -> None:
    from mindspeed_moe.demo.report import PICTURE, SUMMARY

    reason = not_written_out(os.fsencode(out).decode(errors="replace"))
    if reason is not None:
        raise ConfigError(f"--out {out}: {reason}")
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in (SUMMARY, PICTURE, REPORT):
            require_writable(out / name)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written to: {error.strerror}") from error


def _train(settings: Settings, console: Console, *, times: bool = True) -> dict[str, Any] | None:
    """Train with every implementation in turn; returns the summary, None when a process failed.

    times: whether to show the table of times.
    """
    from mindspeed_moe.demo.data import text_name
    from mindspeed_moe.demo.messages import Ready, Result, Step
    from mindspeed_moe.demo.processes import Processes, ProcessFailedError
    from mindspeed_moe.demo.progress import TrainingProgress
    from mindspeed_moe.demo.report import summarize, summary_table
    from mindspeed_moe.demo.worker import run_rank

    began = time.perf_counter()
    versions: dict[str, str] = {}
    results: list[Result] = []
    console.print(
        f"{settings.processes} processes: tp {settings.tp}, ep {settings.ep} x etp {settings.etp}; "
        f"{settings.model.layers} MoE layers of {settings.model.experts} experts, {settings.tokens_per_step} tokens "
        f"a step; text: {text_name(settings.text)}\nstarting them: each imports torch and Megatron-Core ..."
    )
    with tempfile.TemporaryDirectory(prefix="mindspeed-moe-") as folder:
        try:
            with (
                TrainingProgress(settings, console) as progress,
                Processes(settings.processes, run_rank, f"{folder}/rendezvous", settings) as processes,
            ):
                for message in processes.messages():
                    if isinstance(message, Ready):
                        versions = message.versions
                        console.print(f"training after {time.perf_counter() - began:.0f} s, {_named(versions)}")
                    elif isinstance(message, Step):
                        progress.show(message)
                    elif isinstance(message, Result):
                        results.append(message)
        except ProcessFailedError as error:
            print(f"mindspeed-moe demo: {error}", file=sys.stderr)
            return None
    summary = summarize(settings, versions, results, time.perf_counter() - began)
    if times:
        console.print(summary_table(summary))
    baseline = summary["implementations"][summary["baseline"]]
    console.print(
        f"perplexity of a byte: {baseline['first_perplexity']:.1f} at step 1, "
        f"{baseline['last_perplexity']:.1f} at step {settings.steps}; {summary['seconds']:.0f} s in all"
    )
    for name, run in summary["implementations"].items():
        if "verified" in run:
            console.print(
                f"verify: {settings.verify}: {run['verified']['calls']} calls of {run['verified']['layers']} layers of "
                f"{name} in rank 0 compared with the reference; nothing differed"
            )
    return summary


def _forget_earlier_runs(out: Path) -> None:
    """A report adds up what it finds in the folder."""
    for path in (out / TELEMETRY).glob("rank*.jsonl"):
        try:
            remove(path)
        except OSError as error:
            raise ConfigError(f"--out {out}: {path}: cannot be removed: {error.strerror}") from error


def _tell(summary: dict[str, Any], out: Path, console: Console, *, report: bool = True) -> int:
    """Leave the summary, the picture and the report in a folder; returns the exit code."""
    from mindspeed_moe.demo.report import draw_losses, write_summary

    written = {"summary.json": write_summary(summary, out), "loss.png": draw_losses(summary, out)}
    if report and (out / TELEMETRY).is_dir():
        written[REPORT] = _write_report(out)
    console.print("written: " + ", ".join(str(path) for path in written.values() if path))
    for name in (name for name, path in written.items() if path is None):
        package, extra = _MADE_WITH[name]
        console.print(f"{name} is left out: {package} is not installed (pip install 'mindspeed-moe[{extra}]')")
    if not summary["bit_identical"]:
        print(f"mindspeed-moe demo: the losses differ from those of {summary['baseline']}", file=sys.stderr)
        return FAILED
    return 0


def _write_report(out: Path) -> Path | None:
    """Draw the expert load of `packed`; returns the page's path, None when plotly is not installed."""
    import importlib.util

    if importlib.util.find_spec("plotly") is None:
        return None
    from mindspeed_moe.cli.report import write_report

    write_report(out / TELEMETRY, out / REPORT, "demo")
    return out / REPORT


_MADE_WITH = {"loss.png": ("matplotlib", "plot"), REPORT: ("plotly", "report")}


def _named(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
