"""``python -m flows`` is ``weatherglass``."""

from flows.cli import main

main()
