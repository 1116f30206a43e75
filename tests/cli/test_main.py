# SPDX-License-Identifier: Apache-2.0
"""The command as a whole: exit codes, streams, and no traceback for a person's mistake."""

import os
import re
import subprocess
import sys

import pytest

from fastcnn import cli


def run(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "fastcnn", *arguments], capture_output=True, text=True, **options)


def test_help_names_every_subcommand(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    names = ("info", "list", "summary", "check", "classify", "bench", "demo", "accelerate")
    assert all(re.search(rf"^    {name}\s", out, re.MULTILINE) for name in names)


@pytest.mark.parametrize(
    "arguments",
    [[], ["train"], ["classify"], ["bench"], ["bench", "mobilenet_v2", "--batch", "0"], ["list", "--nonsense"]],
    ids=" ".join,
)
def test_usage_mistakes_exit_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("usage: fastcnn")


def test_interruption_and_failure_end_without_a_traceback(monkeypatch, capsys):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.info, "run", interrupt)
    assert cli.main(["info"]) == 130
    assert capsys.readouterr().err == "fastcnn info: interrupted\n"


def test_a_missing_package_is_named_with_its_command(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.delitem(sys.modules, "fastcnn.data", raising=False)
    monkeypatch.setattr(cli.classify, "load_model", lambda name, weights: None)
    assert cli.main(["classify", "--model", "mobilenet_v2", "cat.jpg"]) == 1
    assert capsys.readouterr().err == f"fastcnn classify: needs pillow: {sys.executable} -m pip install pillow\n"


def test_python_m_and_a_closed_pipe():
    version = run("--version")
    assert version.returncode == 0 and version.stdout.startswith("fastcnn ")
    reader, writer = os.pipe()
    os.close(reader)  # nobody reads: what `| head` does once it has enough
    closed = subprocess.run([sys.executable, "-m", "fastcnn", "list"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert closed.returncode == 1 and "Traceback" not in closed.stderr and "BrokenPipe" not in closed.stderr
