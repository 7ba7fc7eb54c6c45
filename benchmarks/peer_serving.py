"""NeuralForecast behind the plainest FastAPI app, run by an interpreter that has both (`make peers`).

    python benchmarks/peer_serving.py SPEC.json

Trains an NHITS on the panel for some steps, saves it, loads it again and serves it; knows nothing of Weatherglass.
`POST /forecast` takes the rows of a table as JSON and answers with the rows of its forecast.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import uvicorn
from fastapi import FastAPI
from fastapi.responses import Response


def train(spec: dict[str, Any], folder: Path) -> None:
    """Train for ``spec["steps"]`` steps, as long as it takes to have weights, and save."""
    from neuralforecast import NeuralForecast
    from neuralforecast.losses.pytorch import MQLoss
    from neuralforecast.models import NHITS

    model = NHITS(
        h=spec["horizon"], input_size=spec["context"], futr_exog_list=spec["known"], hist_exog_list=spec["past"],
        loss=MQLoss(level=[80, 90, 95]), scaler_type="robust", max_steps=spec["steps"], accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    peer = NeuralForecast(models=[model], freq=spec["frequency"])
    rows = pd.read_parquet(spec["panel"])[["unique_id", "ds", "y", *spec["known"], *spec["past"]]]
    peer.fit(rows[rows["y"].notna()])
    peer.save(str(folder), overwrite=True, save_dataset=False)


def served(spec: dict[str, Any], folder: Path) -> FastAPI:
    """The app; one forecast at a time, since a model of NeuralForecast keeps what it is working on in itself."""
    from neuralforecast import NeuralForecast

    model = NeuralForecast.load(str(folder))
    app = FastAPI()

    @app.post("/forecast")
    async def forecast(body: dict[str, Any]) -> Response:
        rows = pd.DataFrame(body["dataframe_split"]["data"], columns=body["dataframe_split"]["columns"])
        if isinstance(spec["frequency"], str):
            rows["ds"] = pd.to_datetime(rows["ds"])
        known = rows["y"].notna()
        history = rows[known].astype(dict.fromkeys(["y", *spec["known"], *spec["past"]], "float64"))
        future = rows.loc[~known, ["unique_id", "ds", *spec["known"]]]
        answer = model.predict(df=history, futr_df=future if spec["known"] else None)
        return Response(answer.to_json(orient="split", date_format="iso"), media_type="application/json")

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    return app


def main() -> None:
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    folder = Path(spec["folder"])
    train(spec, folder)
    uvicorn.run(served(spec, folder), host="127.0.0.1", port=spec["port"], log_level="error")


if __name__ == "__main__":
    main()
