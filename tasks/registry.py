"""The model registry: one registered model, aliases ``champion``, ``challenger`` and ``previous_champion``."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.bundle import Bundle, DamagedBundle, bundle_digest, check_bundle, forecast_columns, write_bundle
from tasks.calibrate import CALIBRATION
from tasks.errors import UserError
from tasks.files import read_json, write_json
from tasks.model_page import describe_version
from tasks.params import Params
from tasks.prepare import INGESTED
from tasks.tracking_store import TrackingError, current_client, first_line, retry
from tasks.versions import COMPARED, RECEIPT, aliases_of, note_registered, version_metrics

DIGEST_TAG = "weatherglass.bundle"
REQUIREMENTS = ("torch", "pytorch-forecasting", "lightning", "pandas", "numpy", "pandera", "safetensors", "scikit-learn",
                "holidays", "pydantic", "pyyaml", "scipy")  # fmt: skip


def register(params: Params, root: Path, run_id: str) -> Path:
    """Write the bundle, log it as one MLflow model and register it; writes and returns ``artifacts/receipt.json``.

    The first version becomes ``champion``; a later one becomes ``challenger``, and the receipt compares the two on
    their test folds. A bundle that is registered already is not registered again, so a rerun changes nothing, unless the
    registry's copy of it is damaged.
    """
    folder = write_bundle(params, root)
    digest, name, client = bundle_digest(folder), params.registry.name, current_client()
    metrics = _compared(folder)
    versions = retry(client.search_model_versions, f"name = '{name}'")
    same = (str(entry.version) for entry in versions if entry.tags.get(DIGEST_TAG) == digest)
    version = next((entry for entry in same if _is_whole(name, entry, digest)), None)
    if version is None:
        version = log_and_register(params, root, folder, run_id, digest)
    for metric, value in metrics.items():
        retry(client.set_model_version_tag, name, version, f"test.{metric}", f"{value:.6g}")
    describe_version(name, version, read_json(root / CALIBRATION / "card.json"), metrics)
    aliases = dict(aliases_of(name))
    champion = aliases.get("champion")
    if champion is None:
        retry(client.set_registered_model_alias, name, "champion", version)
        champion = version
    elif str(champion) != str(version):
        retry(client.set_registered_model_alias, name, "challenger", version)
    receipt: dict[str, Any] = {
        "model": name,
        "version": str(version),
        "alias": "champion" if str(champion) == str(version) else "challenger",
        "bundle": digest,
        "metrics": metrics,
    }
    if receipt["alias"] == "challenger":
        receipt["champion"] = {"version": str(champion), "metrics": version_metrics(name, champion)}
    write_json(root / RECEIPT, receipt)
    note_registered(root, receipt)
    return root / RECEIPT


def set_aside(params: Params, root: Path, experiment: str) -> Path:
    """Write the bundle of a DVC experiment and a receipt that says so; the registry is left alone. Returns the receipt."""
    folder = write_bundle(params, root)
    receipt = {
        "model": params.registry.name,
        "version": None,
        "alias": None,
        "experiment": experiment,
        "bundle": bundle_digest(folder),
        "metrics": _compared(folder),
    }
    write_json(root / RECEIPT, receipt)
    return root / RECEIPT


def log_and_register(params: Params, root: Path, folder: Path, run_id: str, digest: str) -> str:
    """Log the bundle in ``folder`` in a run, as one MLflow model, and register it; returns the version."""
    from importlib.metadata import version as installed

    import mlflow

    here = Path(__file__).parent
    with mlflow.start_run(run_id=run_id), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="mlflow")  # it asks for what the signature says
        logged = mlflow.pyfunc.log_model(
            name=params.registry.name,
            python_model=str(here / "served_model.py"),
            artifacts={"bundle": str(folder)},
            code_paths=[str(here), str(here.parent / "models")],
            pip_requirements=[f"{package}=={installed(package).split('+')[0]}" for package in REQUIREMENTS],
            metadata={"bundle": digest},
            signature=_signature(params, root),
        )
    return str(retry(mlflow.register_model, logged.model_uri, params.registry.name, tags={DIGEST_TAG: digest}).version)


def _signature(params: Params, root: Path):  # type: ignore[no-untyped-def]
    """Long table in, forecast table out: names and types for the registry's page and for checks at serving."""
    import pandas as pd
    from mlflow.models import infer_signature

    history = pd.read_parquet(root / INGESTED / "panel.parquet").head(3)
    numbers = {
        name: "float64" for name in history.columns if name not in ("unique_id", "ds") and history[name].dtype.kind in "if"
    }
    texts, flags = ("unique_id", "model"), ("is_ood", "abstain")
    empty = {name: [""] if name in texts else [False] if name in flags else [0.0] for name in forecast_columns(params)}
    empty |= {"ds": history["ds"].head(1).tolist(), "cutoff": history["ds"].head(1).tolist()}
    return infer_signature(history.astype(numbers), pd.DataFrame(empty), params={"cutoff": ""})


def _compared(folder: Path) -> dict[str, float]:
    """The metrics of a bundle's ensemble by which versions are compared."""
    metrics = read_json(folder / "bundle.json")["metrics"]
    return {metric: metrics[f"ensemble/{metric}"] for metric in COMPARED if f"ensemble/{metric}" in metrics}


def load_challenger(name: str, version: str, digest: str) -> Bundle:
    """Load the version that is to meet the champion, and make it ``challenger`` where it is not."""
    bundle = load_version(name, version, digest)
    if aliases_of(name).get("challenger") != version:  # DVC has brought its receipt back without registering it again
        retry(current_client().set_registered_model_alias, name, "challenger", version)
    return bundle


def load_champion(name: str, alias: str = "champion") -> Bundle:
    """Load the bundle behind ``models:/<name>@<alias>`` with pickles refused.

    Raises UserError where the registry holds no such model or alias.
    """
    return load_version(name, *version_behind(name, alias))


def load_version(name: str, version: str, digest: str) -> Bundle:
    """Load the bundle of a version that was registered with ``digest``; UserError where it is damaged."""
    label = f"{name} version {version}"
    with stored_bundle(name, version) as folder:
        try:
            return Bundle.load(folder, label, digest or None)
        except DamagedBundle as error:
            raise UserError(f"{label} is damaged: {error}") from None


@contextmanager
def stored_bundle(name: str, version: str) -> Iterator[Path]:
    """A copy of the registry's files of a version's bundle, unchecked, for as long as the block lasts.

    Raises UserError where they cannot be had.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory(prefix="weatherglass-") as copy:
        try:
            location = retry(mlflow.artifacts.download_artifacts, f"models:/{name}/{version}", dst_path=copy)
        except (MlflowException, OSError) as error:
            raise UserError(f"the files of {name} version {version} cannot be read: {first_line(error)}") from error
        yield Path(location) / "artifacts/bundle"


def _is_whole(name: str, version: str, digest: str) -> bool:
    """Whether the registry's copy of a version's bundle can be read and is what was registered."""
    try:
        with stored_bundle(name, version) as folder:
            check_bundle(folder, digest)
    except TrackingError:
        raise
    except UserError:
        return False
    return True


def version_behind(name: str, alias: str = "champion") -> tuple[str, str]:
    """The version behind an alias and the digest of its bundle, '' where it was registered without one.

    Raises UserError where the registry holds no such model or alias.
    """
    version = aliases_of(name).get(alias)
    if version is None:
        raise UserError(f"the registry holds no model '{name}' with alias '{alias}'; run `weatherglass run` first.")
    return version, str(retry(current_client().get_model_version, name, version).tags.get(DIGEST_TAG, ""))
