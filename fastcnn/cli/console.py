# SPDX-License-Identifier: Apache-2.0
"""What the subcommands share: tables for people, JSON for machines, two kinds of failure, the loading of a model."""

import argparse
import contextlib
import io
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any


class CommandError(Exception):
    """Ends a subcommand with one message on stderr and no traceback."""

    exit_code = 1


class UsageError(CommandError):
    """The command line asks for something that does not exist."""

    exit_code = 2


def positive_int(text: str) -> int:
    """An argparse type."""
    value = int(text) if text.isascii() and text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 up, got {text!r}")
    return value


def print_json(value: Any) -> None:
    """One JSON document on stdout, ASCII only; NaN, which is no JSON, is an error."""
    print(json.dumps(value, indent=2, allow_nan=False))


def warn(line: str) -> None:
    """A line for the person, beside the result."""
    print(line, file=sys.stderr, flush=True)


def note(line: str) -> None:
    """Says what is going on while a person waits. No spinner: its thread would disturb what is being timed."""
    if sys.stderr.isatty():
        warn(line)


def progress(items: Sequence[Any], description: str, least: int = 8) -> Iterator[Any]:
    """``items``, with a progress bar on stderr when there are ``least`` or more and a person looks."""
    if len(items) < least or not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, description=description, console=Console(stderr=True), transient=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """torch logs and prints pages on a model that it cannot export; the reason is in the error's message."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], right: Sequence[str] = ()) -> None:
    """A rich table on a terminal; on a pipe aligned columns, two blanks or more between them.

    Args:
        columns: the headers; those also named in ``right`` are numbers and aligned to the right.
        rows: one cell per column, printed with ``str``; never read as rich's markup.
    """
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_rich_table(title, columns, cells, right)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    print(title)
    for row in [list(columns), *cells]:
        padded = (c.rjust(w) if name in right else c.ljust(w) for c, w, name in zip(row, widths, columns, strict=True))
        print("  ".join(padded).rstrip())
    print()


def _print_rich_table(title: str, columns: Sequence[str], cells: list[list[str]], right: Sequence[str]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title, style="bold"), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(Text(name), justify="right" if name in right else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    Console().print(table)


def save(figure: Any, path: str) -> None:
    """Write a figure of matplotlib's to the file that the person named."""
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise CommandError(f"{path!r} cannot be written: {error}") from error
    note(f"written: {path}")


def set_threads(threads: int | None) -> int:
    """Apply ``--threads`` and tell how many will run."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def model_metadata(name: str) -> dict[str, Any]:
    """``fastcnn.models.metadata(name)``; an unknown name is a usage error that carries the nearest ones."""
    import fastcnn.models

    try:
        return fastcnn.models.metadata(name)
    except (KeyError, ValueError) as error:
        raise UsageError(error.args[0] if error.args else f"unknown model {name!r}") from error


def load_model(name: str, weights: str | None) -> Any:
    """``fastcnn.create_model`` in eval mode; what is wrong with the weights becomes the command's one message.

    Args:
        weights: a path, or None for the published weights that the metadata names.
    """
    import fastcnn

    if weights is None:
        known = model_metadata(name).get("weights") or {}
        if not known:
            ready = [n for n in fastcnn.list_models() if fastcnn.models.metadata(n).get("weights")]
            raise UsageError(
                f"no published weights are known for {name}: pass --weights PATH, or choose from {', '.join(ready)}"
            )
        weights = next(iter(known))
    try:
        return fastcnn.create_model(name, weights=weights).eval()
    except (ImportError, OSError, ValueError) as error:
        raise CommandError(str(error)) from error
