"""interpret: what TFT looks at on the test fold: variables, attention by lag, regimes."""

from __future__ import annotations

from flows.stage import Stage, run_stage


def interpret_flow(stage: Stage) -> None:
    from tasks.interpret import interpret

    stage.run.log(artifacts=[stage.do(interpret, stage.params, stage.root)])


if __name__ == "__main__":
    raise SystemExit(run_stage("interpret", interpret_flow))
