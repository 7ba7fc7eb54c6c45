"""train: all members of one family, in parallel, resumed where a killed run left them."""

from __future__ import annotations

import argparse

from flows.stage import Stage, run_stage


def train_flow(stage: Stage, family: str) -> None:
    from flows.runners import members_runner
    from tasks.files import read_json
    from tasks.tracking import log_stage
    from tasks.train import LEFT_OUT, train_family

    folder = stage.do(train_family, stage.params, stage.root, family, members_runner(stage.params))
    if (folder / LEFT_OUT).exists():
        reason = read_json(folder / LEFT_OUT)["reason"]
        stage.run.log(params={"family": family, "left_out": reason})
        print(f"train {family}: left out, {reason}")
        return
    config = getattr(stage.params.forecasters, family).model_dump()
    stage.run.log(params={"family": family, **config, **stage.params.train.model_dump()})
    for index, history in enumerate(read_json(folder / "history.json")):
        losses = {key: [row[key] for row in history] for key in ("train_loss", "early_stopping_loss")}
        best = {f"{family}/early_stopping_loss": min(losses["early_stopping_loss"])}
        seed = {"seed": stage.params.train.seed + index, "family": family}
        log_stage(stage.run.run_id, f"{family} member {index}", params=seed, metrics=best, histories=losses)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.train", description="Train the members of one family.")
    parser.add_argument("--family", required=True, help="a family listed in params.yaml")
    family = parser.parse_args().family
    return run_stage(f"train@{family}", lambda stage: train_flow(stage, family))


if __name__ == "__main__":
    raise SystemExit(main())
