"""What is said of a ticket: worked out by hand, and by drawing masks at random."""

from __future__ import annotations

from statistics import mean

import pytest
import torch

from tasks.analysis.overlap import overlap
from tasks.analysis.ticket import DescribeTicket
from tasks.models.weights import load_weights
from tasks.pruning.mask import Mask
from tasks.seeds import generator
from tasks.task import Alone
from tests.tasks.training_toys import Finished, half_mask, toy, trained

pytestmark = pytest.mark.usefixtures("one_thread")

START = toy(stop_at=0)


def test_the_distance_counts_the_weights_that_are_kept_and_no_others() -> None:
    origin = trained(START)
    mask = half_mask(origin)
    ticket = trained(toy(), mask=mask)
    found = DescribeTicket().run(Alone(), trained=ticket, origin=origin).metrics
    began, ended = (load_weights(step.read("weights.safetensors")).kernels() for step in (origin, ticket))
    kept = Mask.from_bytes(mask.read("mask.safetensors"))
    squares = {name: float((ended[name] - began[name])[kept[name]].double().square().sum()) for name in kept}
    assert found["distance"] == pytest.approx(sum(squares.values()) ** 0.5, rel=1e-6)
    assert found["layer_distances"] == pytest.approx({name: each**0.5 for name, each in squares.items()}, rel=1e-6)
    everywhere = sum(float((ended[name] - began[name]).square().sum()) for name in kept) ** 0.5
    assert found["distance"] < 0.8 * everywhere, "pruned weights went to zero, and that is no learning"
    size = sum(float(began[name][kept[name]].square().sum()) for name in kept) ** 0.5
    assert found["relative_distance"] == pytest.approx(found["distance"] / size, rel=1e-5)


def test_a_network_that_has_not_moved_is_at_distance_zero() -> None:
    origin = trained(START)
    found = DescribeTicket().run(Alone(), trained=origin, origin=origin).metrics
    assert found["distance"] == found["relative_distance"] == 0


def test_densities_are_those_of_the_mask_and_a_dense_network_keeps_everything() -> None:
    origin = trained(START)
    mask = half_mask(origin)
    sparse = DescribeTicket().run(Alone(), trained=trained(toy(), mask=mask)).metrics
    assert sparse == Mask.from_bytes(mask.read("mask.safetensors")).summary()
    dense = DescribeTicket().run(Alone(), trained=origin).metrics
    assert dense["density"] == 1
    assert set(dense["layers"].values()) == {1.0}
    assert "iou" not in dense
    assert "distance" not in dense


def test_the_best_network_is_described_when_asked_for() -> None:
    origin, ticket = trained(START), trained(toy(epochs=8))
    files = {**ticket.files, "best.safetensors": origin.read("weights.safetensors")}
    step = Finished(ticket.metrics, files)
    assert DescribeTicket(weights="best").run(Alone(), trained=step, origin=origin).metrics["distance"] == 0
    assert DescribeTicket().run(Alone(), trained=step, origin=origin).metrics["distance"] > 0


def random_mask(sizes: dict[str, tuple[int, int]], draw: int) -> Mask:
    """Exactly so many of so many kept in each layer."""
    kept = {name: torch.arange(size) < count for name, (size, count) in sizes.items()}
    return Mask(kept).shuffled(draw)


def test_chance_is_what_random_masks_share() -> None:
    """Layers of other densities: pooled counts would expect less."""
    one = {"small": (400, 320), "large": (8000, 200)}
    other = {"small": (400, 200), "large": (8000, 400)}
    draws = [overlap(random_mask(one, 2 * draw), random_mask(other, 2 * draw + 1)) for draw in range(60)]
    assert len({each["chance"] for each in draws}) == 1
    assert mean(each["iou"] for each in draws) == pytest.approx(draws[0]["chance"], rel=0.01)
    pooled = 520 * 600 / 8400
    assert draws[0]["chance"] > 2 * pooled / (1120 - pooled)


def test_overlap_with_itself_is_one_and_with_the_rest_zero() -> None:
    mask = Mask({"a": torch.rand(50, 20, generator=generator("overlap")) < 0.5})
    rest = Mask({"a": ~mask["a"]})
    assert overlap(mask, mask)["iou"] == 1
    assert overlap(mask, rest)["iou"] == 0
    assert overlap(mask, rest)["chance"] == pytest.approx(1 / 3, abs=0.02)


def test_a_ticket_is_compared_with_another() -> None:
    mask = half_mask(trained(START))
    ticket = trained(toy(), mask=mask)
    found = DescribeTicket().run(Alone(), trained=ticket, other=mask).metrics
    assert found["iou"] == 1
    assert found["chance"] == pytest.approx(1 / 3, abs=0.03)


def test_what_does_not_fit_is_refused() -> None:
    origin = trained(START)
    mask = half_mask(origin)
    sparse = trained(toy(), mask=mask)
    revived = Finished(
        sparse.metrics, {**sparse.files, "weights.safetensors": trained(toy()).read("weights.safetensors")}
    )
    with pytest.raises(ValueError, match=r"pruned weights of .* are not zero: the mask was not enforced"):
        DescribeTicket().run(Alone(), trained=revived)
    foreign = Mask({"elsewhere": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(ValueError, match="the mask does not fit"):
        DescribeTicket().run(
            Alone(), trained=sparse, other=Finished(foreign.summary(), {"mask.safetensors": foreign.to_bytes()})
        )
