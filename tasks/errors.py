"""The one error that a user's mistake raises."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in params.yaml, in the data or on the command line, told in one sentence.

    The sentence names the place, what was found there and what would be right. The command line prints it without a
    traceback and ends with exit code 2.
    """
