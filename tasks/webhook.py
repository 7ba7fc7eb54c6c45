"""A message to an address of the user's, by which a chat or a pager learns of an alarm."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

VARIABLE = "WEATHERGLASS_WEBHOOK"
SECONDS = 10.0


def webhook_address(address: str | None) -> str | None:
    """The address of ``WEATHERGLASS_WEBHOOK``, else the given one, else None."""
    return os.environ.get(VARIABLE) or address


def post(address: str, message: Mapping[str, Any]) -> str | None:
    """Post ``message`` as JSON; returns why it did not arrive, naming no more of the address than its host, or None."""
    try:
        request = urllib.request.Request(address, json.dumps(message).encode(), {"Content-Type": "application/json"})
        if urlsplit(address).scheme not in ("http", "https"):
            raise ValueError("not http or https")
        with urllib.request.urlopen(request, timeout=SECONDS):
            return None
    except urllib.error.HTTPError as error:
        why = f"it answers {error.code}"
    except urllib.error.URLError as error:
        why = f"it cannot be reached ({type(error.reason).__name__})"
    except (OSError, ValueError) as error:  # a timeout while reading, or no address at all
        why = type(error).__name__
    return f"the webhook at {_host(address)} did not take the message: {why}"


def _host(address: str) -> str:
    """The host of an address, whose path may be a secret."""
    try:
        return urlsplit(address).hostname or "an address without a host"
    except ValueError:
        return "an address that is none"
