"""The time that is left: more work, longer chains and fewer machines make it longer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import pytest

from cluster.flow import Handle
from workflows.command.forecast import Forecast, in_words


@dataclass
class Toy:
    kind: str = "toy"
    threads: int = 1
    gpus: float = 0
    world_size: int = 1


def handle(key: str, *upstream: Handle, **task: Any) -> Handle:
    return Handle(cast(Any, Toy(**task)), {one.key: one for one in upstream}, {}, key)


def chain(length: int, name: str = "") -> list[Handle]:
    steps: list[Handle] = []
    for index in range(length):
        steps.append(handle(f"{name}{index}", *steps[-1:]))
    return steps


def after_one_of(seconds: float, steps: list[Handle], cpus: float = 2, gpus: float = 0) -> Forecast:
    done = handle("done")
    forecast = Forecast([done, *steps], cpus, gpus)
    forecast.end(done, seconds)
    return forecast


def test_nothing_is_said_before_anything_is_known() -> None:
    assert Forecast([handle("a")], 2, 0).seconds({}) is None
    assert Forecast([handle("a")], 2, 0).seconds({"a": (1.0, 0.0)}) is None


def test_independent_steps_share_the_cluster() -> None:
    steps = [handle(str(index)) for index in range(8)]
    assert after_one_of(10, steps, cpus=2).seconds({}) == 40
    assert after_one_of(10, steps, cpus=4).seconds({}) == 20


def test_steps_that_wait_for_each_other_do_not() -> None:
    assert after_one_of(10, chain(8), cpus=64).seconds({}) == 80


def test_a_step_of_several_threads_or_on_a_gpu_counts_for_what_it_keeps_busy() -> None:
    assert after_one_of(10, [handle(str(index), threads=2) for index in range(4)], cpus=2).seconds({}) == 40
    assert after_one_of(10, [handle(str(index), world_size=2) for index in range(4)], cpus=2).seconds({}) == 40
    steps = [handle(str(index), gpus=0.5) for index in range(4)]
    assert after_one_of(10, steps, cpus=64, gpus=1).seconds({}) == 20


def test_progress_and_ends_shorten_it() -> None:
    steps = chain(2)
    forecast = after_one_of(10, steps)
    assert forecast.seconds({"0": (5.0, 0.5)}) == 15
    forecast.end(steps[0], 10)
    assert forecast.seconds({}) == 10
    forecast.end(steps[1])
    assert forecast.seconds({}) == 0


def test_the_pace_of_a_running_step_stands_in_until_one_has_finished() -> None:
    assert Forecast(chain(2), 2, 0).seconds({"0": (5.0, 0.25)}) == pytest.approx(15 + 20)


def test_kinds_that_were_never_seen_take_what_others_take() -> None:
    steps = [handle("a", kind="other")]
    assert after_one_of(10, steps).seconds({}) == 10


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "time left: not known yet"),
        (0.2, "about 1 s left"),
        (99.4, "about 99 s left"),
        (240, "about 4 min left"),
        (3 * 3600, "about 3.0 h left"),
    ],
)
def test_words_are_no_more_exact_than_is_known(seconds: float | None, words: str) -> None:
    assert in_words(seconds) == words
