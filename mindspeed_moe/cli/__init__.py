"""The command line: one module a command. User errors end with one message on standard error and exit code 2."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence

import click

from mindspeed_moe.cli.bench import bench
from mindspeed_moe.cli.demo import demo
from mindspeed_moe.cli.doctor import doctor
from mindspeed_moe.cli.estimate import estimate_command
from mindspeed_moe.cli.replay import replay
from mindspeed_moe.cli.report import report
from mindspeed_moe.cli.selftest import selftest
from mindspeed_moe.cli.tune import tune
from mindspeed_moe.errors import MindSpeedMoEError, printable
from mindspeed_moe.output import own_output

FAILED = 1
USER_ERROR = 2
INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def app() -> None:
    """Device-specific preprocess for expert-parallel MoE layers of Megatron-Core and MindSpeed."""


app.add_command(doctor)
app.add_command(demo)
app.add_command(bench)
app.add_command(tune)
app.add_command(selftest)
app.add_command(replay)
app.add_command(estimate_command)
app.add_command(report)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    _let_everything_be_said()
    try:
        with own_output() as put_aside:
            code = FAILED
            try:
                code = _run(arguments)
                sys.stdout.flush()
            finally:
                if code and (told := put_aside()):
                    print(told, file=sys.stderr)
    except OSError as error:  # of standard output, which may be full, or of a file that nobody expected to fail
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # or its rest fails again at the end
        if error.errno == errno.EPIPE:  # a reader that has seen enough
            return 1
        of = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        return _refuse(f"{of}{error.strerror or error}")
    return code


def _run(arguments: Sequence[str] | None) -> int:
    try:
        code = app.main(args=arguments, prog_name="mindspeed-moe", standalone_mode=False)
    except click.ClickException as error:
        told = io.StringIO()
        error.show(told)
        print(printable(told.getvalue()), end="", file=sys.stderr)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("mindspeed-moe: interrupted", file=sys.stderr)
        return INTERRUPTED
    except MindSpeedMoEError as error:
        return _refuse(str(error))
    return code if isinstance(code, int) else 0


def _refuse(message: str) -> int:
    try:
        print(f"mindspeed-moe: {printable(message)}", file=sys.stderr, flush=True)
    except OSError:  # nobody is left to tell, and what is left in the stream would fail again at the end
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    return USER_ERROR


def _let_everything_be_said() -> None:
    """Prepare the standard streams for letters that they do not have: in an ASCII locale, of names that are no text."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
