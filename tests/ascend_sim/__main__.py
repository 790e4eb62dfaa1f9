"""python -m tests.ascend_sim [OPTIONS] COMMAND... runs a command on the simulated Ascend runtime."""

from __future__ import annotations

import argparse
import os
import shutil
import sys

from tests.ascend_sim.build import SANITIZERS, BuildError, libraries
from tests.ascend_sim.launching import RefusedError, environment


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.ascend_sim",
        description="Runs COMMAND with the real torch_npu on a simulated Ascend device (built first).",
    )
    parser.add_argument("--seed", type=int, help="seed of the delays (ASCEND_SIM_SEED, 0)")
    parser.add_argument(
        "--delay-us", type=float, help="mean delay before each task, microseconds (ASCEND_SIM_DELAY_US, 50)"
    )
    parser.add_argument(
        "--hold-us",
        type=float,
        help="mean hold of a task that nobody waits for, microseconds (ASCEND_SIM_HOLD_US, 2000)",
    )
    parser.add_argument("--npus", type=int, help="number of devices (ASCEND_SIM_NPUS, 8)")
    parser.add_argument("--fault", help='faults, as in "hccl_error_at=3;device_memory=64MiB" (ASCEND_SIM_FAULT)')
    parser.add_argument("--trace", metavar="FILE", help="write the timeline as a Chrome trace (ASCEND_SIM_TRACE)")
    parser.add_argument("--sanitizer", choices=SANITIZERS, default="", help="libraries built with this sanitizer")
    parser.add_argument("--build", action="store_true", help="only build the libraries and print their folder")
    parser.add_argument("command", metavar="COMMAND", nargs=argparse.REMAINDER, help="the command and its arguments")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Replaces this process by the command; returns an exit status only where that is impossible."""
    parser = _parser()
    options = parser.parse_args(arguments)
    command: list[str] = options.command[1:] if options.command[:1] == ["--"] else options.command
    if options.build:
        try:
            print(libraries(options.sanitizer))
        except BuildError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0
    if not command:
        parser.error("no COMMAND to run, as in: python -m tests.ascend_sim python train.py")
    program = shutil.which(command[0])
    if program is None:
        print(f"error: there is no program {command[0]} on PATH", file=sys.stderr)
        return 127
    try:
        variables = environment(
            seed=options.seed,
            delay_us=options.delay_us,
            hold_us=options.hold_us,
            npus=options.npus,
            fault=options.fault,
            trace=options.trace,
            sanitizer=options.sanitizer,
        )
    except (BuildError, RefusedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(program, command, variables)


if __name__ == "__main__":
    sys.exit(main())
