"""The mathematics: torch modules and pure functions on tensors. Knows no file, no Prefect, no MLflow, no pandas."""
