"""Batches: the order of an epoch, resuming in its middle, and augmentation."""

from __future__ import annotations

import pytest
import torch

from tasks.data import Examples
from tasks.data.augmentation import Augmentation
from tasks.data.augmentation.crop_flip import CropFlip
from tasks.data.augmentation.none import Unchanged
from tasks.data.batches import Batch, Loader, in_order


@pytest.fixture
def examples() -> Examples:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (103, 3, 8, 10), dtype=torch.uint8, generator=generator)
    return Examples(images, torch.arange(103))


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a, b) for one, other in zip(left, right, strict=True) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("augmentation", [Unchanged(), CropFlip(padding=2)])
@pytest.mark.parametrize("start", [0, 1, 5, 10, 11])
def test_an_epoch_resumed_in_its_middle_yields_the_remaining_batches(examples, augmentation: Augmentation, start):
    uninterrupted = list(Loader(examples, 10, augmentation=augmentation).epoch(seed=3, epoch=2))
    torch.manual_seed(99)
    torch.rand(7)
    resumed = list(Loader(examples, 10, augmentation=augmentation).epoch(seed=3, epoch=2, start=start))
    assert len(uninterrupted) == 11
    assert same(resumed, uninterrupted[start:])


def test_an_epoch_visits_every_example_once_with_its_own_label_and_value(examples):
    batches = list(Loader(examples, 10).epoch(0, 0))
    images, labels, rows = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(images, examples.images[rows] / 255)
    assert torch.equal(labels, examples.labels[rows])
    assert labels.sort().values.tolist() == list(range(103))
    assert images.dtype == torch.float32
    assert torch.equal(images, examples.images[labels].to(torch.float32) / 255)


def test_seed_and_epoch_decide_the_order_and_augmentation_does_not(examples):
    def order(seed: int, epoch: int, augmentation: Augmentation | None = None) -> list[int]:
        return torch.cat(
            [labels for _, labels, _ in Loader(examples, 9, augmentation=augmentation).epoch(seed, epoch)]
        ).tolist()

    assert order(0, 0) == order(0, 0) == order(0, 0, CropFlip())
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_each_example_of_an_epoch_has_draws_of_its_own_whatever_the_batch_size(examples):
    few, many = (list(Loader(examples, size, augmentation=CropFlip(padding=2)).epoch(0, 0)) for size in (7, 103))
    assert torch.equal(torch.cat([images for images, _, _ in few]), many[0][0])


def test_iterating_leaves_the_global_generator_alone(examples):
    before = torch.get_rng_state()
    list(Loader(examples, 10, augmentation=CropFlip()).epoch(0, 0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [50, 50, 3]), (True, [50, 50])])
def test_the_short_last_batch_is_kept_unless_dropped(examples, drop_last, sizes):
    loader = Loader(examples, 50, drop_last=drop_last)
    assert [len(labels) for _, labels, _ in loader.epoch(0, 0)] == sizes
    assert len(loader) == len(sizes)


def test_channels_last_changes_the_layout_and_no_value(examples):
    plain, other = (list(Loader(examples, 50, channels_last=flag).epoch(0, 0)) for flag in (False, True))
    assert same(plain, other)
    assert other[0][0].is_contiguous(memory_format=torch.channels_last)
    assert plain[0][0].is_contiguous()


@pytest.mark.parametrize(("batch_size", "drop_last"), [(0, False), (104, True)])
def test_a_loader_without_a_single_batch_is_refused(examples, batch_size, drop_last):
    with pytest.raises(ValueError, match=f"no batch of {batch_size} .* 103 examples"):
        Loader(examples, batch_size, drop_last=drop_last)


def test_evaluation_sees_all_examples_in_order(examples):
    images, labels = (torch.cat(parts) for parts in zip(*in_order(examples, 25), strict=True))
    assert torch.equal(images, examples.images / 255)
    assert torch.equal(labels, examples.labels)


def one_by_one(images: torch.Tensor, drawn: torch.Tensor, padding: int) -> torch.Tensor:
    """Crop and flip by the definition, a pixel at a time."""
    result = torch.zeros_like(images)
    height, width = images.shape[2:]
    for image, (top, left, flipped), target in zip(images, drawn.tolist(), result, strict=True):
        for y in range(height):
            for x in range(width):
                source_y = y + top - padding
                source_x = (width - 1 - x if flipped else x) + left - padding
                if 0 <= source_y < height and 0 <= source_x < width:
                    target[:, y, x] = image[:, source_y, source_x]
    return result


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_crop_flip_equals_its_definition_pixel_by_pixel(examples, padding):
    images, augmentation = examples.images[:40].clone(), CropFlip(padding=padding)
    drawn = augmentation.draw(40, torch.Generator().manual_seed(1))
    assert set(drawn[:, 2].tolist()) == {0, 1}
    augmented = augmentation.augment(images, drawn)
    assert torch.equal(augmented, one_by_one(images, drawn, padding))
    assert augmented.dtype == torch.uint8
    assert torch.equal(images, examples.images[:40])


def test_crop_flip_draws_every_shift_evenly_and_flips_at_its_rate():
    drawn = CropFlip(padding=2, flip=0.25).draw(20_000, torch.Generator().manual_seed(0))
    for edges in (drawn[:, 0], drawn[:, 1]):
        assert (torch.bincount(edges, minlength=5) - 4000).abs().max() < 300
    assert 0.23 < drawn[:, 2].double().mean() < 0.27
    assert not CropFlip(flip=0).draw(1000, torch.Generator().manual_seed(0))[:, 2].any()
    assert CropFlip(flip=1).draw(1000, torch.Generator().manual_seed(0))[:, 2].all()


def test_another_epoch_shifts_the_same_image_differently(examples):
    def pictures(epoch: int) -> torch.Tensor:
        batches = list(Loader(examples, 103, augmentation=CropFlip(padding=2)).epoch(0, epoch))
        return batches[0][0][batches[0][1].argsort()]

    changed = (pictures(0) != pictures(1)).flatten(1).any(dim=1)
    assert changed.sum() > 90  # one of fifty draws twice alike


@pytest.mark.gpu
def test_a_gpu_sees_the_batches_that_the_cpu_sees(examples):
    for augmentation in (Unchanged(), CropFlip()):
        here = list(Loader(examples, 10, "cpu", augmentation).epoch(0, 1))
        there = list(Loader(examples, 10, "cuda", augmentation).epoch(0, 1))
        assert there[0][0].is_cuda
        assert same(here, [tuple(each.cpu() for each in batch) for batch in there])
