"""The guarantee card in plain words: what is promised, on what assumption, and how much evidence is behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.report import MISSING, NBSP

__all__ = ["CardRow", "card_rows"]


@dataclass(frozen=True)
class CardRow:
    """A line of the guarantee card in plain words; ``lines`` has one entry, or one for each member of a mapping."""

    label: str
    lines: tuple[str, ...]
    meaning: str = ""


# key of the card -> its heading and what it means to someone who uses the forecast
MEANING = {
    "uncertainty": ("Preset", "What was combined to say how sure a forecast is (docs/uncertainty.md)."),
    "score": ("Conformal score", "How far out of its forecast a value counts as lying."),
    "energy": ("Energy alarm", "A second way to tell input that is unlike what was seen in training."),
    "sets": ("Conformal sets", "The bins that hold each step's value with the promised share."),
    "groups": ("By series", "For which series the intervals hold by themselves, not only on average."),
    "assumption": ("Assumption", "What must be true of the new data for the guarantee to hold."),
    "unit": ("Unit", "What the promised share is a share of."),
    "levels": (
        "Levels",
        "How many scores each promise rests on, and where coverage falls by chance alone when it holds (95 %).",
    ),
    "fold": ("Fold", "The days whose truths set the intervals; no forecaster was trained on them."),
    "blocks": ("Blocks of time", "Stretches of time in the fold: windows of one share what happened in it."),
    "gate": ("Alarm", "What tells input that is unlike what was seen in training, and how often it may be wrong."),
    "abstention": ("Abstention", "Which forecasts are withheld, and what is promised of the error of the rest."),
    "statement": ("Guarantee", "What is promised."),
    "alpha": ("Miscoverage (alpha)", "The share of values that may fall outside."),
    "level": ("Level", "The share of values promised to lie inside."),
    "n": ("Calibration scores (n)", "How many held-out scores set the width of the intervals."),
    "k": ("Rank (k)", "The interval's half-width is the k-th smallest of the n scores."),
    "rank": ("Rank (k)", "The interval's half-width is the k-th smallest of the n scores."),
    "n_eff": ("Effective n", "What n is worth once overlapping windows are counted in blocks."),
    "coverage": ("Coverage on the test fold", "The share that did lie inside."),
    "coverage_band": ("Sampling band", "Where coverage falls by chance alone when the guarantee holds."),
    "band": ("Sampling band", "Where coverage falls by chance alone when the guarantee holds."),
    "certified": ("Certified", "Whether there are enough scores to promise this level at all."),
}


def _number(value: float | int) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return MISSING if math.isnan(value) else "infinite" if math.isinf(value) else f"{value:.4g}"
    return f"{value:,}"


def _words(value: Any) -> str:
    """Return any JSON-like value as short text; more than six numbers become their count, range and mean."""
    if value is None:
        return "none"
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, bool | int | float):
        return _number(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{_heading(key)} {_words(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        numbers = [item for item in value if isinstance(item, int | float)]
        if len(numbers) == len(value) > 6:
            low, high, mean = _number(min(numbers)), _number(max(numbers)), _number(sum(numbers) / len(numbers))
            return f"{len(numbers)} values from {low} to {high}, mean {mean}"
        return ("; " if any(isinstance(item, Mapping) for item in value) else ", ").join(map(_words, value)) or "none"
    return str(value)


def _heading(key: Any) -> str:
    return str(key).replace("_", " ").strip()


FIRST = ("assumption", "unit", "levels", "groups", "n", "score", "fold", "blocks", "sets", "gate", "energy", "abstention")


def _share(value: float) -> str:
    return f"{100 * value:.1f}{NBSP}%"


def _level(name: str, promise: Mapping[str, Any]) -> str:
    """One promised level: what it rests on, or why it is not promised."""
    if not promise["certified"]:
        return f"{name}: not promised, {promise['n']:,} scores are too few"
    low, high = promise["band_95"]
    endless = "" if promise.get("finite", True) else "; some intervals are infinite"
    constant = f"; steps that never vary: {_words(promise['constant_steps'])}" if promise.get("constant_steps") else ""
    return (
        f"{name}: promised, by rank {promise['rank']:,} of {promise['n']:,} scores, worth {promise['n_effective']:,.0f} "
        f"independent ones: {_share(low)} to {_share(high)}{endless}{constant}"
    )


def _gate(gate: Mapping[str, Any]) -> tuple[str, ...]:
    reads = f"reads the features of the {gate['encoder']} encoder and {gate['descriptors']} descriptors of the history"
    return reads, f"set to flag {_share(gate['nominal_false_alarm_rate'])} of ordinary windows, by {gate['n']:,} of the fold"


def _abstention(card: Mapping[str, Any]) -> tuple[str, ...]:
    withheld = (
        f"set to withhold {_share(card['nominal_share_withheld'])} of ordinary forecasts, by {card['n']:,} windows of the fold"
    )
    return withheld, *((card["risk"],) if "risk" in card else ())


def _preset(preset: Mapping[str, Any]) -> tuple[str, ...]:
    used = ", ".join(f"{key} {_words(value)}" for key, value in preset["combination"].items())
    return f"{preset['name']}: {preset['promise']}", used


TOLD = {
    "levels": lambda levels: tuple(_level(name, promise) for name, promise in levels.items()),
    "gate": _gate,
    "abstention": _abstention,
    "uncertainty": _preset,
}


def card_rows(card: Mapping[str, Any], most: int = 12) -> list[CardRow]:
    """Return the guarantee card as lines in plain words, what matters most first.

    A part that is not as this version writes it is shown key by key; a mapping of more than ``most`` numbers is summed up.
    """
    rows = []
    for key in sorted(card, key=lambda key: FIRST.index(key) if key in FIRST else len(FIRST)):
        value, fallback = card[key], _heading(key)
        label, meaning = MEANING.get(key, (fallback[:1].upper() + fallback[1:], ""))
        try:
            lines = TOLD[key](value)
        except (KeyError, TypeError, ValueError):
            lines = _lines(key, value, most)
        rows.append(CardRow(label, lines, meaning))
    return rows


def _lines(key: str, value: Any, most: int) -> tuple[str, ...]:
    """Any value, key by key where it has keys."""
    if key.endswith("band") and isinstance(value, list | tuple) and len(value) == 2:
        return (" to ".join(map(_words, value)),)
    if isinstance(value, Mapping) and value:
        numbers = [item for item in value.values() if isinstance(item, int | float)]
        whole = len(numbers) == len(value) > most
        return (_words(numbers),) if whole else tuple(f"{_heading(name)}: {_words(item)}" for name, item in value.items())
    return (_words(value),)
