"""The errors that are told in one sentence: a user's mistake, and a disk or service that is not available."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in params.yaml, in the data or on the command line, told in one sentence.

    The sentence names the place, what was found there and what would be right. The command line prints it without a
    traceback and ends with exit code 2.
    """

    exit_code = 2


class Unavailable(UserError):
    """A disk or a service that fails a run through no fault of its params, told in one sentence like a mistake.

    The command line ends with exit code 1: once it is mended, the same command goes on from where the run stopped.
    """

    exit_code = 1
