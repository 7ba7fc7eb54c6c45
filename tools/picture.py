"""Take the pictures of the README from a finished run: the report and the projection.

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
SIZE = "1120,1750"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("."), help="a project folder with a finished run")
    root = parser.parse_args().root.resolve()
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("picture: no Chromium was found; install it (Debian: apt-get install chromium).")
    images = Path(__file__).resolve().parent.parent / "docs" / "images"
    images.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        page, picture = (root / "reports/report.html").as_uri(), images / "report.png"
        command = [browser, *FLAGS, f"--user-data-dir={profile}", f"--window-size={SIZE}", f"--screenshot={picture}", page]
        subprocess.run(command, check=True, capture_output=True)
    shutil.copyfile(root / "artifacts/projection/projection.png", images / "projection.png")


if __name__ == "__main__":
    main()
