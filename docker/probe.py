#!/usr/bin/env python3
"""A health check: ends with 0 where the address answers with 200.

probe http://127.0.0.1:5000/api/2.0/... [USER PASSWORD_FILE]
"""

from __future__ import annotations

import base64
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

SECONDS = 4.0


def answers(address: str, user: str | None = None, password_file: str | None = None) -> bool:
    """Whether GET ``address`` gives 200 within `SECONDS`, with basic authentication where a user is named."""
    request = urllib.request.Request(address)
    if user and password_file:
        word = f"{user}:{Path(password_file).read_text(encoding='utf-8').strip()}"
        request.add_header("Authorization", f"Basic {base64.b64encode(word.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            return bool(response.status == 200)
    except (OSError, ValueError) as error:
        print(f"{address}: {error}", file=sys.stderr)
        return False


def main(arguments: Sequence[str]) -> int:
    return 0 if answers(*arguments) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
