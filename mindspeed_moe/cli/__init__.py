"""The command line: one module a command. User errors end with one message on standard error and exit code 2."""

from __future__ import annotations

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
from mindspeed_moe.errors import MindSpeedMoEError

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
    try:
        code = app.main(args=arguments, prog_name="mindspeed-moe", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("mindspeed-moe: interrupted", file=sys.stderr)
        return INTERRUPTED
    except MindSpeedMoEError as error:
        print(f"mindspeed-moe: {error}", file=sys.stderr)
        return USER_ERROR
    return code if isinstance(code, int) else 0
