"""Presets: what `uncertainty` in params.yaml fills in wherever a block leaves one of these keys null.

A key that a block sets wins over the preset. `docs/uncertainty.md` says which preset is for what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tasks.params import Params

PresetName = Literal["quick", "reliable", "safety_critical", "sets", "ood", "constrained"]

RELIABLE: dict[str, Any] = {
    "train.members": 2,
    "ensemble.families": "all",
    "ensemble.dropout_passes": 0,
    "ensemble.pooling": "quantile_average",
    "calibration.temperature": "global",
    "calibration.score": "tail",
    "calibration.groups": "none",
    "calibration.sets": "none",
    "calibration.energy": False,
    "calibration.ood_alpha": 0.05,
    "calibration.abstain_fraction": 0.05,
}
"""Keys that presets govern, and the values of the default preset."""

SMALLEST_FIRST = ("tcn", "tide", "s4d", "mamba", "mamba2", "tft", "deepar", "hybrid", "wavenet", "gradient_boosting")
"""Families by what their forecasts cost in time and memory at the default sizes."""

WITH_LOGITS = ("tcn", "mamba", "s4d", "mamba2", "hybrid", "tide")
"""Families whose networks forecast all steps at once and take a categorical head; the first listed gets one for energy."""


@dataclass(frozen=True)
class Preset:
    """``promise`` is what the guarantee card says of it; ``differs`` holds the values unlike those of `reliable`."""

    promise: str
    differs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fills(self) -> dict[str, Any]:
        """Dotted keys of params.yaml and their values."""
        return RELIABLE | dict(self.differs)


PRESETS: dict[str, Preset] = {
    "quick": Preset(
        "one network a family, whose spread over dropout masks stands in for an ensemble; temperature, then conformal "
        "intervals",
        {"train.members": 1, "ensemble.dropout_passes": 20},
    ),
    "reliable": Preset("a deep ensemble of every family; temperature, then conformal intervals"),
    "safety_critical": Preset(
        "a deep ensemble, pooled as a mixture; conformal intervals ranked for each series by itself where it has windows "
        "enough; an alarm and abstention twice as ready",
        {
            "ensemble.pooling": "linear",
            "calibration.groups": "series",
            "calibration.ood_alpha": 0.1,
            "calibration.abstain_fraction": 0.1,
        },
    ),
    "sets": Preset(
        "a deep ensemble; besides intervals, conformal sets: the run of a series' decile bins that holds each step's value",
        {"calibration.sets": "ordinal"},
    ),
    "ood": Preset(
        "a deep ensemble; strange input is told by the energy of a categorical head as well as by distances from training",
        {"calibration.energy": True},
    ),
    "constrained": Preset(
        "one network of the smallest family listed, with 10 passes of MC dropout; temperature, then conformal intervals",
        {"train.members": 1, "ensemble.families": "smallest", "ensemble.dropout_passes": 10},
    ),
}


def filled(tree: Mapping[str, Any], families: tuple[str, ...]) -> dict[str, Any]:
    """The tree of params.yaml with the preset's values in place of nulls and missing keys; ``families`` where it lists none.

    What is no block, and a preset that does not exist, are left for validation to tell.
    """
    name = tree.get("uncertainty", "reliable")
    result = dict(tree)
    if not isinstance(name, str) or name not in PRESETS:
        return result
    for key, value in PRESETS[name].fills.items():
        block, _, leaf = key.partition(".")
        branch = result.get(block, {})
        if isinstance(branch, Mapping) and branch.get(leaf) is None:
            result[block] = {**branch, leaf: value}
    return _with_heads(result, result.get("families", families))


def _with_heads(tree: dict[str, Any], listed: Any) -> dict[str, Any]:
    """The tree without null heads, which leaves the family's own, or a categorical one where the energy alarm needs it."""
    forecasters = tree.get("forecasters", {})
    if not isinstance(forecasters, Mapping) or not isinstance(listed, list | tuple):
        return tree
    blocks = {family: dict(block) for family, block in forecasters.items() if isinstance(block, Mapping)}
    direct = [family for family in WITH_LOGITS if blocks.get(family, {}).get("decoding", "direct") == "direct"]
    heads = {family: blocks.get(family, {}).get("head") for family in direct if family in listed}
    for block in blocks.values():
        if block.get("head", "") is None:
            del block["head"]
    energy = isinstance(tree.get("calibration"), Mapping) and tree["calibration"].get("energy") is True
    if energy and "categorical" not in heads.values():
        for family in [family for family, head in heads.items() if head is None][:1]:
            blocks[family] = {**blocks.get(family, {}), "head": "categorical"}
    return {**tree, "forecasters": {**forecasters, **blocks}}


def categorical_families(params: Params) -> tuple[str, ...]:
    """Families of the run whose networks give logits, in the order in which the energy alarm chooses."""
    return tuple(
        family
        for family in WITH_LOGITS
        if family in params.families
        and getattr(params.forecasters, family).head == "categorical"
        and not samples_paths(family, getattr(params.forecasters, family))
    )


def samples_paths(family: str, config: Any) -> bool:
    """Whether a family forecasts by sampled paths, step after step, in place of all steps at once."""
    return family in ("deepar", "wavenet") or getattr(config, "decoding", "direct") == "paths"


def keeps_dropout(family: str, config: Any) -> bool:
    """Whether a family's network has a layer that MC dropout can keep on; DeepAR's lie between its LSTM layers.

    One mask a path is kept by the samplers of WaveNet and of DeepAR with its normal likelihood alone.
    """
    if family == "deepar" and (config.layers == 1 or config.head == "categorical"):
        return False
    return getattr(config, "dropout", 0.0) > 0.0 and getattr(config, "decoding", "direct") == "direct"


def dropout_families(params: Params, families: tuple[str, ...]) -> tuple[str, ...]:
    """Those of ``families`` that MC dropout can serve."""
    return tuple(family for family in families if keeps_dropout(family, getattr(params.forecasters, family)))


def why_no_dropout(params: Params, family: str) -> str:
    """Why MC dropout cannot serve a family, as a clause."""
    if family == "gradient_boosting":
        return "gradient_boosting has no stochastic layer"
    config = getattr(params.forecasters, family)
    if config.dropout == 0.0:
        return f"forecasters.{family}.dropout is 0"
    if getattr(config, "decoding", "direct") == "paths":
        return f"forecasters.{family}.decoding is paths, along which its network does not keep one mask"
    if family == "deepar" and config.head == "categorical":
        return "forecasters.deepar.head is categorical, and along the paths of bins its network does not keep one mask"
    return f"forecasters.{family}.layers is 1, which leaves no layer to drop between"


def passes_of(params: Params, family: str) -> int:
    """MC dropout passes of each member of a family; 0 where they are off or the family cannot be served."""
    return params.ensemble.dropout_passes if dropout_families(params, (family,)) else 0


def combination(params: Params) -> dict[str, Any]:
    """The preset's name and every key it governs as the run uses it, by dotted names."""
    used: dict[str, Any] = {"uncertainty": params.uncertainty}
    for key in RELIABLE:
        block, _, leaf = key.partition(".")
        used[key] = getattr(getattr(params, block), leaf)
    return used


def statement(params: Params) -> dict[str, Any]:
    """What the guarantee card says of the preset: name, promise, the keys that differ from it, and who has no MC dropout."""
    preset = PRESETS[params.uncertainty]
    used = combination(params)
    own = {key: used[key] for key, value in preset.fills.items() if used[key] != value}
    said: dict[str, Any] = {"name": params.uncertainty, "promise": preset.promise}
    said["combination"] = {key: value for key, value in used.items() if key != "uncertainty"}
    if own:
        said["set in params.yaml against the preset"] = ", ".join(f"{key} {value}" for key, value in own.items())
    without = [family for family in params.families if not passes_of(params, family)]
    if params.ensemble.dropout_passes and without:
        clauses = "; ".join(why_no_dropout(params, family) for family in without)
        said["without MC dropout"] = f"{', '.join(without)}, with one forecast a member ({clauses})"
    return said
