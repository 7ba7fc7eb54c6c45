"""What `weatherglass tune` may change of each family, and between which values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tasks.errors import UserError

if TYPE_CHECKING:
    from optuna import Trial

DIGITS = 3  # significant digits of a real number, in training as in params.yaml


@dataclass(frozen=True)
class Between:
    """Any real number of an interval, on a logarithmic scale or a plain one."""

    low: float
    high: float
    log: bool = False

    def reaching(self, value: float, valid: Callable[[Any], bool]) -> Between:
        """The interval, widened to hold a value."""
        return replace(self, low=min(self.low, value), high=max(self.high, value))

    def suggest(self, trial: Trial, name: str) -> float:
        return float(f"{trial.suggest_float(name, self.low, self.high, log=self.log):.{DIGITS}g}")


@dataclass(frozen=True)
class Among:
    """One of a few whole numbers."""

    values: tuple[int, ...]

    def reaching(self, value: int, valid: Callable[[Any], bool]) -> Among:
        """The values that are valid, with another one."""
        return Among(tuple(sorted({value, *filter(valid, self.values)})))

    def suggest(self, trial: Trial, name: str) -> int:
        return int(trial.suggest_categorical(name, self.values))


Space = Mapping[str, Between | Among]

RATE = Between(5e-4, 2e-2, log=True)
DROPOUT = Between(0.0, 0.4)
WIDTH = Among((24, 32, 48, 64, 96))
DESCENT: Space = {"learning_rate": RATE, "dropout": DROPOUT}
SPACES: dict[str, Space] = {
    "tft": {**DESCENT, "hidden_size": Among((16, 24, 32, 48, 64)), "attention_heads": Among((1, 2, 4))},
    "deepar": {**DESCENT, "hidden_size": WIDTH, "layers": Among((1, 2, 3))},
    "tcn": {**DESCENT, "width": WIDTH, "levels": Among((4, 5, 6)), "kernel_size": Among((2, 3, 5))},
    "wavenet": {**DESCENT, "width": Among((16, 24, 32, 48)), "levels": Among((5, 6, 7, 8))},
    "s4d": {**DESCENT, "width": WIDTH, "layers": Among((1, 2, 3, 4)), "state_size": Among((16, 32, 64))},
    "mamba": {**DESCENT, "width": WIDTH, "layers": Among((1, 2, 3)), "state_size": Among((8, 16, 32))},
    "mamba2": {**DESCENT, "width": WIDTH, "layers": Among((1, 2, 3)), "state_size": Among((8, 16, 32))},
    "hybrid": {**DESCENT, "width": WIDTH, "layers": Among((2, 3, 4)), "state_size": Among((8, 16, 32))},
    "tide": {**DESCENT, "width": Among((64, 96, 128)), "hidden": Among((96, 192, 256, 384)), "layers": Among((1, 2, 3))},
    "gradient_boosting": {
        "learning_rate": Between(0.03, 0.3, log=True),
        "leaves": Among((15, 31, 63, 127)),
        "least_rows": Among((10, 20, 40, 80)),
        "feature_share": Between(0.3, 1.0),
    },
}


def space_of(family: str, config: Any) -> Space:
    """The family's search space around its configuration: it holds the configuration's values, and no others that fail.

    Raises UserError for a family that there is not.
    """
    if family not in SPACES:
        raise UserError(f"'{family}' is no family; weatherglass tune knows {', '.join(SPACES)}.")

    def allows(name: str) -> Callable[[Any], bool]:
        def valid(value: Any) -> bool:
            try:
                with_values(config, {name: value})
            except ValidationError:
                return False
            return True

        return valid

    return {name: choice.reaching(getattr(config, name), allows(name)) for name, choice in SPACES[family].items()}


def with_values(config: Any, values: Mapping[str, Any]) -> Any:
    """A family's configuration with other values; raises pydantic.ValidationError where they do not go together."""
    return type(config).model_validate(config.model_dump() | dict(values))
