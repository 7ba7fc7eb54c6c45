"""Tables: lines in a pipe, a table on a terminal."""

from __future__ import annotations

import io
import sys

import pytest

from tasks.terminal import aligned, show_table

ROWS = [("model", "wql"), ("ensemble", "0.0360"), ("[red]", "-")]


def test_a_pipe_gets_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(ROWS, "Models", strong=("ensemble",))
    assert capsys.readouterr().out == "model     wql\nensemble  0.0360\n[red]     -\n" == aligned(ROWS) + "\n"


def test_a_terminal_gets_a_titled_table_with_text_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setenv("TERM", "xterm")
    show_table(ROWS, "Models", strong=("ensemble",))
    assert "Models" in shown.getvalue() and "[red]" in shown.getvalue() and "0.0360" in shown.getvalue()
