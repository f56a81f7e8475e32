"""The trials of a search as a user of Ray Tune would run them: OptunaSearch proposes, one worker runs a whole chain.

As a program, `python -m tests.benchmarks.tune_baseline TRIALS RESULTS FOLDER`, it reads the base recipe and the
parameters of each trial from a file, gives these to OptunaSearch as the points to evaluate, and writes what came out.
A trial trains and prunes level after level in memory, and measures the last ticket alone; a worker is kept for the next
trial, which is not Tune's default. So nothing is counted against Tune that its user could easily avoid.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.task import Alone, Result, Stored

CONCURRENT = 2


@dataclass(frozen=True)
class Kept:
    """A result in memory, for the task that needs it next."""

    result: Result

    @property
    def metrics(self) -> Mapping[str, Any]:
        return self.result.metrics

    def read(self, name: str) -> bytes:
        return self.result.files[name]


def chain(base: Mapping[str, Any], levels: int, epsilon: float) -> dict[str, float]:
    """One trial: every level of its chain from scratch, then what its last ticket is worth on validation data."""
    from workflows.imp import IMP

    train = {**base["train"], "objective": {**base["train"]["objective"], "epsilon": epsilon}}
    workflow = IMP.model_validate({**base, "levels": levels, "train": train})
    trained, mask, cost = Kept(workflow.train.run(Alone())), None, 0
    cost += trained.metrics["sample_steps"]
    for level in range(1, levels + 1):
        known: dict[str, Stored] = {} if mask is None else {"mask": mask}
        mask = Kept(workflow.pruning(workflow.train, level).run(Alone(), trained=trained, **known))
        trained = Kept(workflow.train.run(Alone(), mask=mask))
        cost += trained.metrics["sample_steps"]
    measurement = workflow.measurement(workflow.train).model_copy(update={"split": "validation"})
    measured = measurement.run(Alone(), trained=trained).metrics
    robust = {f"robust@{entry['epsilon']:g}": entry["accuracy"] for entry in measured["robust"]}
    return {
        "clean": measured["clean"]["accuracy"],
        **robust,
        "sparsity": 1 - trained.metrics["density"],
        "sample-steps": cost,
    }


def tuned(base: Mapping[str, Any], trials: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """All trials under Tune, two at a time: the figures of each, and how long Tune ran, without the start of Ray."""
    import optuna
    import ray
    from ray import tune
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ray.init(num_cpus=CONCURRENT, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    started = time.perf_counter()

    def trial(parameters: dict[str, Any]) -> None:
        tune.report(chain(base, parameters["levels"], parameters["epsilon"]))

    space = {
        "levels": optuna.distributions.IntDistribution(1, max(point["levels"] for point in trials)),
        "epsilon": optuna.distributions.CategoricalDistribution(sorted({point["epsilon"] for point in trials})),
    }
    search = OptunaSearch(
        space,
        metric=["robust@0.1", "sparsity"],
        mode=["max", "max"],
        points_to_evaluate=trials,
        sampler=optuna.samplers.TPESampler(seed=0),
    )
    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": 1}),
        tune_config=tune.TuneConfig(
            search_alg=ConcurrencyLimiter(search, max_concurrent=CONCURRENT),
            num_samples=len(trials),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(storage_path=str(folder), name="tune", verbose=0),
    )
    results = list(tuner.fit())
    ended = time.perf_counter()
    ray.shutdown()
    return {
        "running": ended - started,
        "trials": [
            {"parameters": {name: found.config[name] for name in space}, "metrics": found.metrics} for found in results
        ],
    }


def main() -> int:
    trials, results, folder = map(Path, sys.argv[1:4])
    given = json.loads(trials.read_text())
    results.write_text(json.dumps(tuned(given["base"], given["trials"], folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
