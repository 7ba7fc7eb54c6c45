"""The whole pipeline: DVC decides what is stale, one Prefect server and one MLflow parent run see all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tasks.errors import UserError
from tasks.files import file_md5, held, read_json, waiting, write_text
from tasks.params import Params
from tasks.params_file import set_key
from tasks.presets import combination
from tasks.versions import is_registered

INGESTED = Path("data/ingested")
USER_ERROR = Path(".weatherglass/user_error.txt")
RUN_LOCK = Path(".weatherglass/run.lock")


def run_pipeline(root: Path, targets: Sequence[str] = (), force: bool = False) -> int:
    """Run what is stale of ``targets`` (all stages by default); returns the exit code: 0, 2 user's mistake, 1 failure.

    A second run of the same project waits for the first and says so.
    """
    from flows.environment import opened
    from flows.recovery import mend_dvc
    from flows.runners import check_runner
    from flows.server import prefect_server
    from flows.warm import warm_process

    root, params = opened(root)
    check_runner(params)
    if not (root / "dvc.yaml").exists() or not (root / ".dvc").is_dir():
        raise UserError(f"{root} holds no dvc.yaml and .dvc folder; run weatherglass in the project's folder.")
    print(preset_line(params), flush=True)
    with held(root / RUN_LOCK, waiting("running this project")) as lock, warm_process(root), prefect_server(root) as api_url:
        (root / USER_ERROR).unlink(missing_ok=True)
        mend_dvc(root)
        code = 0
        if source_changed(root, params):
            code = reproduce(root, lock, ["--single-item", "ingest"], force=True)
        if params.runner != "local" and not targets and not code:
            from flows.ahead import train_ahead

            code = reproduce(root, lock, ["prepare"], force) or train_ahead(root, params, force)
        code = code or reproduce(root, lock, targets, force)
        if code == 0 and (not targets or "register" in targets) and not is_registered(root):
            code = reproduce(root, lock, ["--single-item", "register"], force=True)
    if code == 0 and not targets:
        print(where_to_look(root, api_url))
    return code


def run_ingest(root: Path, until: str | None = None) -> int:
    """Read the data again and nothing else; ``until`` is written to params.yaml first. Returns `run_pipeline`'s exit code.

    Raises UserError, and leaves params.yaml as it was, where ``until`` is not a date (or a whole number, for such time).
    """
    path = root / "params.yaml"
    if until is not None:
        Params.load(root=root)
        before = path.read_text(encoding="utf-8")
        set_key(path, "data", "until", until if until.isdigit() or until == "null" else f'"{until}"')
        try:
            Params.load(root=root)
        except UserError:
            write_text(path, before)
            raise
    return run_pipeline(root, ["ingest"])


def preset_line(params: Params) -> str:
    """The preset and the values of the keys that it governs, in one line."""
    name, *values = combination(params).items()
    return f"{name[0]} {name[1]}: {', '.join(f'{key} {value}' for key, value in values)}"


def source_changed(root: Path, params: Params) -> bool:
    """Whether the file that was ingested has other content now; DVC itself sees that only of files in ``data/raw``."""
    meta = root / INGESTED / "meta.json"
    if params.data.path is None or not meta.exists() or not (root / params.data.path).is_file():
        return False
    return bool(read_json(meta).get("source_md5") != file_md5(root / params.data.path))


def reproduce(root: Path, lock: int, targets: Sequence[str], force: bool) -> int:
    """Run ``dvc repro``, which holds the run's ``lock`` too, and turn its exit code into ours."""
    command = [sys.executable, "-m", "dvc", "repro", *(["--force"] if force else []), *targets]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    done = subprocess.run(command, cwd=root, env=environment, pass_fds=[lock], check=False)
    if done.returncode == 0:
        return 0
    return 2 if (root / USER_ERROR).exists() else 1


def where_to_look(root: Path, api_url: str) -> str:
    """The last lines of a run: where its results are."""
    return (
        f"\nreport     {root / 'reports/report.html'}\n"
        f"metrics    {root / 'metrics/test.json'}\n"
        f"map        {root / 'artifacts/projection/map.html'}\n"
        f"forecast   weatherglass forecast --output forecast.parquet\n"
        f"MLflow     make ui, then http://127.0.0.1:5000  (store: {os.environ['MLFLOW_TRACKING_URI']})\n"
        f"Prefect    {api_url.removesuffix('/api')} while a run lasts, or make ui, then http://127.0.0.1:4200"
    )


if __name__ == "__main__":
    raise SystemExit(run_pipeline(Path.cwd()))
