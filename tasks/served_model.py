"""The registered model as MLflow loads it: models-from-code around a bundle, with nothing pickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel


class ServedForecaster(PythonModel):  # type: ignore[misc]
    """Long table with ``unique_id, ds, y`` and covariates in, forecast table out."""

    def load_context(self, context: Any) -> None:
        from tasks.bundle import Bundle

        self.bundle = Bundle.load(Path(context.artifacts["bundle"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        from tasks.future import with_future_rows
        from tasks.ingest import validate_panel

        frame, _ = validate_panel(model_input, self.bundle.params, for_training=False)
        return self.bundle.forecast(with_future_rows(frame, self.bundle.encoding, (params or {}).get("cutoff") or None))


mlflow.models.set_model(ServedForecaster())
