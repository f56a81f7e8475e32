"""How long a network takes: a positive figure that knows its batch and its size, and disturbs nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tasks.measuring import latency
from tasks.measuring.evaluate import Evaluate
from tasks.measuring.latency import MeasureLatency
from tasks.models.initialise import initialise
from tasks.models.weights import weights_to_bytes
from tasks.task import Alone
from tests.tasks.test_pruning import Finished
from tests.tasks.training_toys import Blobs, Tiny

pytestmark = pytest.mark.usefixtures("one_thread")


def trained(architecture: Tiny) -> Finished:
    return Finished({"weights.safetensors": weights_to_bytes(initialise(architecture, Blobs().signature(), 0))})


def measured(**fields: Any) -> dict[str, Any]:
    task = MeasureLatency(data=Blobs(), architecture=Tiny(), repeats=5, **fields)
    return task.run(Alone(), trained=trained(Tiny())).metrics


def test_seconds_are_a_median_between_its_quartiles() -> None:
    found = measured(batch=3)
    assert 0 < found["low"] <= found["seconds"] <= found["high"]
    assert (found["batch"], found["device"]) == (3, "cpu")


def test_the_time_is_that_of_one_image_however_many_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def took(model: nn.Module, images: torch.Tensor, passes: int) -> float:
        seen.append((len(images), passes))
        return 0.01 * passes  # a pass takes ten milliseconds, whatever its size

    monkeypatch.setattr(latency, "_seconds", took)
    assert measured(batch=4)["seconds"] == pytest.approx(0.0025)
    assert seen[:2] == [(4, 1), (4, 2)], "passes are doubled until they take long enough"
    assert set(seen[2:]) == {(4, 2)}
    assert measured(batch=1)["seconds"] == pytest.approx(0.01)


def test_a_network_ten_times_slower_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = measured()["seconds"]
    build = latency.load_network

    class Slow(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(19):
                super().forward(x)
            return super().forward(x)

    monkeypatch.setattr(latency, "load_network", lambda *given: Slow(build(*given)))
    assert measured()["seconds"] > 4 * fast


def test_timing_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    measured()
    assert torch.equal(torch.get_rng_state(), before)


def test_where_it_is_measured_is_part_of_the_identity() -> None:
    evaluation = Evaluate(data=Blobs(), architecture=Tiny(), gpus=0.5, threads=2, weights="best")
    beside = MeasureLatency.beside(evaluation, 8)
    assert (beside.batch, beside.weights, beside.threads, beside.gpus) == (8, "best", 2, 0.5)
    assert beside.identity() != beside.model_copy(update={"gpus": 0}).identity()
    assert evaluation.identity() == evaluation.model_copy(update={"gpus": 0}).identity()


@pytest.mark.parametrize("fields", [{"batch": 0}, {"repeats": 2}])
def test_nothing_to_measure_is_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        MeasureLatency(data=Blobs(), architecture=Tiny(), **fields)
