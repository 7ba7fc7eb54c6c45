"""Which registered version answers: promotion, rollback, and the history of both.

A decision is written as JSON first, then as tags of the version, and the aliases move last, so that a process killed at any
moment leaves the old champion in place or the new one whole; the same command again ends in the same place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.files import locked, write_json
from tasks.tracking_store import current_client, retry
from tasks.versions import COMPARED, aliases_of, version_metrics

DECISIONS = Path("artifacts/decisions")
DECISION_TAG = "weatherglass.decision"
TOLD = 15  # decisions in a tag, whose length MLflow limits
PROMOTED, KEPT_OUT, ROLLED_BACK = "promoted", "kept out", "rolled back to"
CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous_champion"


@dataclass(frozen=True)
class Decision:
    """What was decided of ``version``: ``action`` is ``promoted``, ``kept out`` or ``rolled back to``.

    ``champion`` answered before, ``previous`` is the version that a rollback would bring back from then on, None where
    there is none. ``figures`` are what the gate found, empty where somebody decided by hand.
    """

    model: str
    version: str
    action: str
    champion: str | None
    previous: str | None
    reason: str
    at: str
    figures: Mapping[str, Any] = field(default_factory=dict)


def promote(
    root: Path, name: str, version: str | None = None, reason: str = "asked for", figures: Mapping[str, Any] | None = None
) -> Decision | None:
    """Make ``version`` (by default the challenger) the champion and keep the old one as ``previous_champion``.

    Returns None where it is the champion already. Raises UserError where there is no such model, version or challenger.
    """
    with locked(root / ".weatherglass/promotion.lock"):
        aliases = _known(name)
        version = version or aliases.get(CHALLENGER)
        if version is None:
            raise UserError(
                f"model '{name}' has no challenger to promote; `weatherglass run` registers one when data or params.yaml "
                "change, or name a --version."
            )
        _check_version(name, version)
        champion = aliases.get(CHAMPION)
        if version == champion:
            if aliases.get(CHALLENGER) == version:  # left by a promotion that was killed at its last step
                retry(current_client().delete_registered_model_alias, name, CHALLENGER)
            return None
        decision = Decision(name, version, PROMOTED, champion, champion, reason, _now(), figures or {})
        _carry_out(root, decision, drop_challenger=aliases.get(CHALLENGER) == version)
        return decision


def keep_out(root: Path, name: str, version: str, reason: str, figures: Mapping[str, Any]) -> Decision:
    """Record that ``version`` did not pass the gate; aliases stay as they are."""
    with locked(root / ".weatherglass/promotion.lock"):
        aliases = _known(name)
        decision = Decision(name, version, KEPT_OUT, aliases.get(CHAMPION), aliases.get(PREVIOUS), reason, _now(), figures)
        _record(root, decision)
        return decision


def judged(name: str, version: str, champion: str) -> Decision | None:
    """The last decision that keeps ``version`` out against ``champion``, the gate's or a rollback from it, or None."""
    for told, action, before in ((version, KEPT_OUT, champion), (champion, ROLLED_BACK, version)):
        last = next(iter(_decisions(name, told)[-1:]), None)
        if last is not None and (last.action, last.champion) == (action, before):
            return last
    return None


def promoted_at(name: str, version: str) -> str | None:
    """When ``version`` last became champion, as ISO 8601; None for a first version, which nobody promoted."""
    return next((each.at for each in reversed(_decisions(name, version)) if each.action != KEPT_OUT), None)


def rollback(root: Path, name: str, reason: str = "asked for") -> Decision:
    """Make ``previous_champion`` the champion again; the version that it replaced earlier is then the previous one.

    Raises UserError where there is nothing to go back to. Rolling back twice never brings back what was rolled back.
    """
    with locked(root / ".weatherglass/promotion.lock"):
        aliases = _known(name)
        version, champion = aliases.get(PREVIOUS), aliases.get(CHAMPION)
        if version is None or version == champion:
            raise UserError(
                f"model '{name}' has no previous champion to go back to; `weatherglass history` lists its versions."
            )
        _check_version(name, version)
        before = next((row for row in reversed(_decisions(name, version)) if row.action == PROMOTED), None)
        previous = None if before is None else before.previous
        decision = Decision(name, version, ROLLED_BACK, champion, previous, reason, _now())
        _carry_out(root, decision, drop_challenger=aliases.get(CHALLENGER) == version)
        return decision


def history(name: str) -> list[dict[str, Any]]:
    """Every version, oldest first: when it was registered, its aliases, test metrics and what was decided of it."""
    aliases = _known(name)
    rows = []
    for entry in sorted(
        retry(current_client().search_model_versions, f"name = '{name}'"), key=lambda entry: int(entry.version)
    ):
        version = str(entry.version)
        rows.append(
            {
                "version": version,
                "registered": _time(datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC)),
                "aliases": sorted(alias for alias, held in aliases.items() if held == version),
                "metrics": version_metrics(name, version),
                "decisions": [asdict(decision) for decision in _decisions(name, version)],
            }
        )
    return rows


def history_rows(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The history as rows of text, one a version, the first of them headings."""
    shown = [metric for metric in COMPARED if any(metric in row["metrics"] for row in rows)]
    lines: list[tuple[str, ...]] = [("version", "registered", *shown, "aliases", "decisions")]
    for row in rows:
        metrics = [f"{row['metrics'][metric]:.4f}" if metric in row["metrics"] else "-" for metric in shown]
        said = "; ".join(f"{each['action']} {each['at']} ({each['reason']})" for each in row["decisions"])
        lines.append((row["version"], row["registered"], *metrics, ", ".join(row["aliases"]) or "-", said or "-"))
    return lines


def _carry_out(root: Path, decision: Decision, drop_challenger: bool) -> None:
    _record(root, decision)
    client, name = current_client(), decision.model
    if decision.previous is not None:
        retry(client.set_registered_model_alias, name, PREVIOUS, decision.previous)
    retry(client.set_registered_model_alias, name, CHAMPION, decision.version)
    if decision.previous is None:
        retry(client.delete_registered_model_alias, name, PREVIOUS)
    if drop_challenger:
        retry(client.delete_registered_model_alias, name, CHALLENGER)


def _record(root: Path, decision: Decision) -> None:
    """Write a decision as JSON, then add it to the version's tag, without its figures and at most ``TOLD`` of them."""
    stamp = decision.at.replace(":", "").replace("-", "")
    write_json(root / DECISIONS / f"{stamp}_{decision.model}_{decision.version}.json", asdict(decision))
    told = _decisions(decision.model, decision.version)
    if told and (told[-1].action, told[-1].champion) == (decision.action, decision.champion):
        told.pop()  # of a command that was killed before its end
    text = json.dumps([asdict(replace(each, figures={})) for each in [*told, decision][-TOLD:]])
    retry(current_client().set_model_version_tag, decision.model, decision.version, DECISION_TAG, text)


def _known(name: str) -> dict[str, str]:
    """Aliases of a model that is there."""
    aliases = aliases_of(name)
    if not aliases:
        raise UserError(f"the registry holds no model '{name}'; run `weatherglass run` first.")
    return aliases


def _check_version(name: str, version: str) -> None:
    versions = {str(entry.version) for entry in retry(current_client().search_model_versions, f"name = '{name}'")}
    if version not in versions:
        raise UserError(f"model '{name}' has no version {version}; it has {', '.join(sorted(versions, key=int))}.")


def _decisions(name: str, version: str) -> list[Decision]:
    tags = retry(current_client().get_model_version, name, version).tags
    return [Decision(**row) for row in json.loads(tags.get(DECISION_TAG, "[]"))]


def _now() -> str:
    return _time(datetime.now(UTC))


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
