"""ensemble: weigh the members and pool their forecasts."""

from __future__ import annotations

from flows.stage import Stage, run_stage


def ensemble_flow(stage: Stage) -> None:
    from tasks.ensemble import make_ensemble, member_weights
    from tasks.presets import combination
    from tasks.tracking import StageRun
    from tasks.train import forget_members

    folder = stage.do(make_ensemble, stage.params, stage.root)
    weights = {f"weight/{row['family']}_{row['index']}": float(row["weight"]) for row in member_weights(stage.root)}
    StageRun(stage.parent_run_id).log(params=combination(stage.params))
    stage.do(forget_members, stage.root)
    stage.run.log(params=stage.params.ensemble.model_dump(mode="json"), metrics=weights, artifacts=[folder / "weights.json"])


if __name__ == "__main__":
    raise SystemExit(run_stage("ensemble", ensemble_flow))
