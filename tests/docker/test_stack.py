"""From nothing to a forecast, a retraining and killed containers; the tests follow each other on one stack."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

SERVERS = ("postgres", "mlflow", "prefect", "scorer")
HORIZON = 6
FEW_EPOCHS = 3
EPOCH = """
from pathlib import Path
import torch
for path in Path("/project/.weatherglass/checkpoints").rglob("last.ckpt"):
    print(torch.load(path, weights_only=False)["epoch"])
"""
Eventually = Callable[[Callable[[], Any], float, str], Any]


class Answer(NamedTuple):
    """Status and JSON of an HTTP answer; status 0 where nobody answers."""

    status: int
    body: Any


class Stack:
    """The services as a client sees them."""

    def __init__(self, engine: Any, eventually: Eventually) -> None:
        self.engine, self.eventually = engine, eventually
        self.secrets = {path.name: path.read_text().strip() for path in (engine.folder / "secrets").iterdir()}

    def ask(self, service: str, path: str, body: Any = None, authorization: str | None = None) -> Answer:
        """GET, or POST where there is a body."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.engine.ports[service]}{path}")
        if authorization:
            request.add_header("Authorization", authorization)
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return Answer(response.status, _json(response.read()))
        except urllib.error.HTTPError as error:
            return Answer(error.code, _json(error.read()))
        except OSError:
            return Answer(0, None)

    def mlflow(self, path: str) -> Answer:
        return self.ask(
            "MLFLOW", f"/api/2.0/mlflow/{path}", authorization=_basic("scorer", self.secrets["mlflow_scorer_password"])
        )

    def prefect(self, path: str, body: Any = None) -> Any:
        word = _basic("weatherglass", self.secrets["prefect_password"])
        return self.ask("PREFECT", f"/api/{path}", body, authorization=word).body

    def forecast(self) -> Answer:
        """The forecast of a series that the panel knows."""
        return self.ask("SCORER", "/v1/forecast", {"ids": ["a"]}, f"Bearer {self.secrets['api_keys']}")

    def champion(self) -> str | None:
        """The version behind @champion, None where MLflow does not answer or has none."""
        found = self.mlflow("registered-models/alias?name=weatherglass&alias=champion")
        return str(found.body["model_version"]["version"]) if found.status == 200 else None

    def begin(self, service: str, seconds: float = 180.0) -> None:
        """Start a service and wait until its own health check is content."""
        self.engine.start(service)
        self.eventually(lambda: self.engine.healthy(service), seconds, f"{service} is healthy")

    def retrain(self) -> str:
        """Begin a run of the deployment `retrain` that trains although nothing is new; returns its id."""
        deployment = self.prefect("deployments/name/retrain/retrain")["id"]
        return str(self.prefect(f"deployments/{deployment}/create_flow_run", {"parameters": {"force": True}})["id"])

    def ended(self, run: str) -> str | None:
        """Name of the state in which a flow run has ended, None as long as it goes on."""
        state = self.prefect(f"flow_runs/{run}")["state"]
        return str(state["name"]) if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content.decode("utf-8", "replace")


def _basic(user: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


@pytest.fixture(scope="module")
def stack(engine: Any, eventually: Eventually) -> Iterator[Stack]:
    """All services but the worker, with no champion yet."""
    engine.build()
    built = Stack(engine, eventually)
    try:
        for service in SERVERS:
            built.begin(service)
        yield built
    finally:
        engine.down()


def test_the_smaller_image_is_the_base_of_the_larger(stack: Stack, tell: Callable[[str], None]) -> None:
    sizes = {image: stack.engine.size(image) for image in ("serve", "worker")}
    tell(f"images, all layers: serve {sizes['serve']:.0f} MB, worker {sizes['worker']:.0f} MB")
    layers = {image: stack.engine.layers(image) for image in sizes}
    shared = [one for one, other in zip(layers["serve"], layers["worker"], strict=False) if one == other]
    assert len(shared) >= len(layers["serve"]) - 1  # all but the project's own code
    assert sizes["serve"] < 0.85 * sizes["worker"]


def test_the_service_lives_but_is_not_ready_before_there_is_a_champion(stack: Stack) -> None:
    assert stack.ask("SCORER", "/healthz").status == 200
    assert stack.ask("SCORER", "/readyz").status == 503


def test_nothing_is_told_without_a_password(stack: Stack) -> None:
    assert stack.ask("MLFLOW", "/api/2.0/mlflow/experiments/get?experiment_id=0").status == 401
    assert stack.ask("PREFECT", "/api/flow_runs/filter", {}).status == 401
    assert stack.ask("SCORER", "/v1/forecast", {"ids": ["a"]}).status == 401
    reader = _basic("scorer", stack.secrets["mlflow_scorer_password"])
    made = stack.ask("MLFLOW", "/api/2.0/mlflow/registered-models/delete", {"name": "weatherglass"}, reader)
    assert made.status in (403, 404)


def test_bootstrap_makes_a_champion_that_forecasts_and_does_nothing_again(stack: Stack) -> None:
    for _ in range(2):
        stack.engine.start("bootstrap")
        stack.eventually(lambda: not stack.engine.inspect("bootstrap")["State"]["Running"], 240, "bootstrap has ended")
        assert stack.engine.inspect("bootstrap")["State"]["ExitCode"] == 0, stack.engine.logs("bootstrap")[-3000:]
        assert stack.champion() == "1"
    stack.eventually(lambda: stack.ask("SCORER", "/readyz").status == 200, 60, "the service is ready")
    answer = stack.forecast()
    assert answer.status == 200, answer.body
    (forecast,) = answer.body["forecasts"]
    assert (answer.body["model"]["version"], forecast["unique_id"], len(forecast["mean"])) == ("1", "a", HORIZON)
    assert all(low < high for low, high in zip(forecast["lo-90"], forecast["hi-90"], strict=True))


def test_the_deployment_retrains_and_ends_in_a_decision(stack: Stack) -> None:
    stack.begin("worker")
    run = stack.retrain()
    assert stack.eventually(lambda: stack.ended(run), 300, "the retraining has ended") in ("Promoted", "Kept")


def test_a_killed_database_comes_back_with_everything(stack: Stack) -> None:
    before = (stack.champion(), stack.forecast().body)
    stack.engine.kill("postgres")
    stack.begin("postgres")
    stack.eventually(lambda: stack.champion() == before[0], 120, "MLflow finds the database again")
    stack.eventually(lambda: stack.prefect("deployments/name/retrain/retrain"), 120, "Prefect finds the database again")
    assert stack.forecast().body == before[1]


def test_a_killed_service_answers_as_before(stack: Stack) -> None:
    before = stack.forecast().body
    stack.engine.kill("scorer")
    stack.begin("scorer")
    stack.eventually(lambda: stack.ask("SCORER", "/readyz").status == 200, 60, "the service is ready")
    assert stack.forecast().body == before


def test_a_worker_killed_in_training_goes_on_from_its_checkpoint(stack: Stack) -> None:
    run = stack.retrain()
    stack.eventually(lambda: (_epoch(stack) or 0) >= FEW_EPOCHS, 240, "some epochs are done")
    stack.engine.kill("worker")
    stack.begin("worker")
    assert stack.ended(run) == "Crashed"
    (again,) = stack.prefect("flow_runs/filter", {"flow_runs": {"tags": {"all_": ["begun again"]}}})
    epochs: list[int] = []

    def ended() -> str | None:
        epochs.extend(epoch for epoch in [_epoch(stack)] if epoch is not None)
        return stack.ended(again["id"])

    how = stack.eventually(ended, 300, "the second try has ended")
    assert how in ("Promoted", "Kept"), stack.engine.logs("worker")[-6000:]
    assert min(epochs) >= FEW_EPOCHS


def test_containers_have_no_privileges_and_show_no_password(stack: Stack) -> None:
    passwords = {name: value for name, value in stack.secrets.items() if name not in ("s3.json", "s3_access_key")}
    for service in (*SERVERS, "worker", "bootstrap"):
        found = stack.engine.inspect(service)
        assert found["HostConfig"]["ReadonlyRootfs"], service
        assert found["Config"]["User"] == "10001:10001", service
        shown = json.dumps(found) + stack.engine.logs(service)
        assert [name for name, value in passwords.items() if value in shown] == [], service
    status = stack.engine.exec("scorer", "cat", "/proc/self/status")
    assert "CapEff:\t0000000000000000" in status and "NoNewPrivs:\t1" in status
    commands = stack.engine.exec("worker", "sh", "-c", "cat /proc/[0-9]*/cmdline")
    assert [name for name, value in passwords.items() if value in commands] == []


def _epoch(stack: Stack) -> int | None:
    """The last epoch in the checkpoint of the member in training, None where there is no checkpoint."""
    told = stack.engine.exec("worker", "python", "-c", EPOCH, check=False).strip()
    return int(told) if told.isdigit() else None
