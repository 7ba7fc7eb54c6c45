"""Take the pictures of the README from a finished run: the report and the map.

    python tools/picture.py [--root .]

Needs Chromium (Debian: apt-get install chromium). Writes docs/images/.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--hide-scrollbars")  # fmt: skip
PAGES = {"report": ("reports/report.html", "1120,1750"), "projection": ("artifacts/projection/map.html", "1320,1180")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("."), help="a project folder with a finished run")
    root = parser.parse_args().root.resolve()
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("picture: no Chromium was found; install it (Debian: apt-get install chromium).")
    images = Path(__file__).resolve().parent.parent / "docs" / "images"
    images.mkdir(parents=True, exist_ok=True)
    for name, (page, size) in PAGES.items():
        with tempfile.TemporaryDirectory() as profile:
            command = [browser, *FLAGS, f"--user-data-dir={profile}", f"--window-size={size}", "--virtual-time-budget=4000"]
            command += [f"--screenshot={images / name}.png", (root / page).as_uri()]
            subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    main()
