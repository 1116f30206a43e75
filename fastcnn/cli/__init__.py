# SPDX-License-Identifier: Apache-2.0
"""The ``fastcnn`` command: a file per subcommand, with ``add_parser`` (light) and ``run`` (imports what it needs)."""

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Sequence

from fastcnn.cli import accelerate, bench, check, classify, demo, info, summary
from fastcnn.cli import list as list_command
from fastcnn.cli.console import CommandError


def _version() -> str:
    try:
        return importlib.metadata.version("fastcnn")
    except importlib.metadata.PackageNotFoundError:
        return "not installed (run from a source tree)"


def build_parser() -> argparse.ArgumentParser:
    """The whole command line, without importing torch."""
    parser = argparse.ArgumentParser(
        prog="fastcnn", description="Mobile CNNs on custom fused kernels.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"fastcnn {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (info, list_command, summary, check, classify, bench, demo, accelerate):
        module.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own).

    Returns: 0 when everything worked, 1 when something failed, 2 for a usage mistake.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the terminal's encoding lacks must not end the run
            stream.reconfigure(errors="backslashreplace")
    args = build_parser().parse_args(argv)
    try:
        code = args.run(args)
        sys.stdout.flush()
        return code
    except CommandError as error:
        print(f"fastcnn {args.command}: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        if error.name not in ("PIL", "rich", "matplotlib"):
            raise
        package = "pillow" if error.name == "PIL" else error.name
        print(f"fastcnn {args.command}: needs {package}: {sys.executable} -m pip install {package}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # `fastcnn list | head`: the reader has what it wanted; keep the interpreter from flushing once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(f"fastcnn {args.command}: interrupted", file=sys.stderr)
        return 130
