"""The command line: one module a command. User errors end with one message on standard error and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
import typer

from mindspeed_moe.cli import bench, demo, doctor
from mindspeed_moe.errors import MindSpeedMoEError

USER_ERROR = 2

app = typer.Typer(
    name="mindspeed-moe",
    help="Device-specific preprocess for expert-parallel MoE layers of Megatron-Core and MindSpeed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(doctor.doctor)
app.command()(demo.demo)
app.command()(bench.bench)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        code = app(args=arguments, prog_name="mindspeed-moe", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        print("interrupted", file=sys.stderr)
        return 130
    except MindSpeedMoEError as error:
        print(f"mindspeed-moe: {error}", file=sys.stderr)
        return USER_ERROR
    return code if isinstance(code, int) else 0
