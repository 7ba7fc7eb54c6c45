"""calibrate: temperature, conformal intervals, the gate and the guarantee card, each on its own fold."""

from __future__ import annotations

from flows.stage import Stage, run_stage


def calibrate_flow(stage: Stage) -> None:
    from tasks.calibrate import calibrate

    folder = stage.do(calibrate, stage.params, stage.root)
    stage.run.log(
        params=stage.params.calibration.model_dump(mode="json"),
        artifacts=[folder / "calibration.json", folder / "card.json"],
    )


if __name__ == "__main__":
    raise SystemExit(run_stage("calibrate", calibrate_flow))
