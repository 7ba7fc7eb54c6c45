"""ui: both web pages on the embedded stores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def serve_uis(root: Path, mlflow_port: int, prefect_port: int) -> int:
    """Serve MLflow and Prefect on 127.0.0.1 until interrupted; returns 0, or 1 when one of them ends by itself."""
    from flows.environment import opened

    root, params = opened(root)
    compared = f"\n         {address}" if (address := _compared(params.registry.experiment, mlflow_port)) else ""
    mlflow = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(mlflow_port),
              "--backend-store-uri", os.environ["MLFLOW_TRACKING_URI"], "--workers", "1"]  # fmt: skip
    prefect = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(prefect_port)]
    print(f"MLflow   http://127.0.0.1:{mlflow_port}{compared}\nPrefect  http://127.0.0.1:{prefect_port}\nCtrl-C ends both.")
    running = [subprocess.Popen(command, cwd=root) for command in (mlflow, prefect)]
    try:
        while all(process.poll() is None for process in running):
            try:
                running[0].wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                continue
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def _compared(experiment: str, port: int) -> str:
    """Where MLflow compares the runs of the project's experiment, empty before its first run."""
    from tasks.mlflow_view import view_address
    from tasks.tracking import initialise
    from tasks.tracking_store import current_client, retry

    initialise()
    found = retry(current_client().get_experiment_by_name, experiment)
    return f"http://127.0.0.1:{port}/{view_address(found.experiment_id)}" if found else ""
