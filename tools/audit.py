"""Are the locked packages known to be vulnerable? make audit

Every line of every lock must be an exact pin, and no release that is known to be malicious may be pinned. pip-audit then asks
the OSV database of all pins; where that cannot be reached, it is said so, and the pins have been checked for themselves.

Exit codes: 0 nothing found, or OSV cannot be reached; 1 a pin that is none, or a known vulnerability.
"""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("requirements.lock", "requirements-serve.lock", "requirements-dev.lock", "requirements-services.lock")
PIN = re.compile(r"[a-z0-9][a-z0-9.-]*==[0-9][A-Za-z0-9.!-]*")
MALICIOUS = {"lightning==2.6.2", "lightning==2.6.3"}
OSV = "https://api.osv.dev/v1/vulns/PYSEC-2018-28"
SECONDS = 10.0


def loose(lock: Path) -> list[str]:
    """Lines of a lock that are neither an exact pin of a good release, nor a comment, nor name the lock before it."""
    lines = (line.strip() for line in lock.read_text(encoding="utf-8").splitlines())
    wanted = (line for line in lines if line and not line.startswith(("#", "-r requirements")))
    return [line for line in wanted if line in MALICIOUS or not PIN.fullmatch(line)]


def reachable(address: str = OSV) -> bool:
    """Whether the database of vulnerabilities answers."""
    try:
        with urllib.request.urlopen(address, timeout=SECONDS) as response:
            return bool(response.status == 200)
    except (OSError, ValueError):
        return False


def main() -> int:
    """Check the pins, then ask OSV; returns the exit code."""
    found = [f"{name}: '{line}' is not an exact pin of a good release" for name in LOCKS for line in loose(ROOT / name)]
    if found:
        print("\n".join(found), file=sys.stderr)
        return 1
    print(f"every line of {', '.join(LOCKS)} is an exact pin")
    if not reachable():
        print("OSV's database cannot be reached from here: known vulnerabilities were not looked up")
        return 0
    command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", "osv", "--no-deps", "--disable-pip"]
    requirements = [part for name in LOCKS for part in ("--requirement", str(ROOT / name))]
    return subprocess.run([*command, *requirements], check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
