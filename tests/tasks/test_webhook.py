"""The webhook: what arrives, and that a failure says no more of a secret address than its host."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tasks.webhook import post, webhook_address


class Receiver(BaseHTTPRequestHandler):
    got: list[dict[str, object]]
    code = 200

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).got.append(json.loads(body))
        self.send_response(type(self).code)
        self.end_headers()

    def log_message(self, *given: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    Receiver.got, Receiver.code = [], 200
    server = HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hooks/secret-token"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_message_arrives_as_json(address: str) -> None:
    assert post(address, {"text": "2 alarms", "alarms": [{"metric": "crps"}]}) is None
    assert Receiver.got == [{"text": "2 alarms", "alarms": [{"metric": "crps"}]}]


def test_a_failure_is_told_without_the_secret(address: str) -> None:
    Receiver.code = 403
    told = post(address, {"text": "x"})
    assert told is not None and "127.0.0.1 did not take the message: it answers 403" in told and "secret" not in told
    for wrong in ("http://127.0.0.1:9/secret", "http://[secret", "ftp://host/secret"):
        told = post(wrong, {"text": "x"})
        assert told is not None and "did not take the message" in told and "secret" not in told


def test_the_environment_goes_before_params(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEATHERGLASS_WEBHOOK", raising=False)
    assert webhook_address(None) is None and webhook_address("http://a") == "http://a"
    monkeypatch.setenv("WEATHERGLASS_WEBHOOK", "http://b")
    assert webhook_address("http://a") == "http://b"
