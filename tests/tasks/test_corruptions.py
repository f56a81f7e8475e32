"""Corruptions do what their names and the published table say, image by image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from tasks.attacks.draws import Draws
from tasks.component import members
from tasks.corruptions import BENCHMARK, SEVERITIES, Corruption, benchmark, truncated
from tests.tasks.pictures import corrupt, flat, pictures

EXTRA = ("gaussian-blur", "saturate", "spatter", "speckle-noise")
KINDS = tuple(members(Corruption))
RANDOM = (
    "elastic-transform",
    "fog",
    "frost",
    "gaussian-noise",
    "glass-blur",
    "impulse-noise",
    "motion-blur",
    "shot-noise",
    "snow",
    "spatter",
    "speckle-noise",
)

NOT_FALLING = {
    "elastic-transform": (1, 2, 3, 4),  # each severity moves the whole image less than the one before
    "frost": (3, 4),  # the fourth and fifth image are dimmed more and not iced more, or hardly
    "glass-blur": (1, 2, 4),  # the scattering stays as it is, and a wider blur hides more of it
    "motion-blur": (3,),  # the same deviation; only the radius, far beyond it, grows
    "saturate": (2,),  # from less colour to more colour
    "spatter": (3,),  # from water to mud
}
"""Severities after which the published table does not make the pixels worse."""


def error(images: torch.Tensor, clean: torch.Tensor) -> float:
    """Mean peak signal-to-noise ratio, in decibels."""
    squared = (images.double() - clean.double()).square().mean(dim=(1, 2, 3))
    return float((10 * torch.log10(255**2 / squared.clamp(min=1e-3))).mean())


def test_the_family_has_the_published_fifteen_and_the_four_extra_ones() -> None:
    assert set(KINDS) == {*BENCHMARK, *EXTRA}
    assert [type(corruption) for corruption in benchmark()] == [members(Corruption)[kind] for kind in BENCHMARK]
    assert len(BENCHMARK) == 15


@pytest.mark.parametrize("kind", KINDS)
def test_what_becomes_of_an_image_does_not_depend_on_its_company(kind: str) -> None:
    images = pictures(6)
    kept = torch.tensor([4, 0, 3])
    corruption = members(Corruption)[kind]()
    draws = Draws(3, torch.tensor([10, 11, 12, 13, 14, 15]))
    for severity in (1, 3, 5):
        together = corruption.corrupt(images, severity, draws)
        assert torch.equal(corruption.corrupt(images[kept], severity, draws.at(kept)), together[kept])
        alone = [corruption.corrupt(images[n : n + 1], severity, draws.at(torch.tensor([n]))) for n in range(6)]
        assert torch.equal(torch.cat(alone), together)


@pytest.mark.parametrize("kind", KINDS)
def test_corrupting_leaves_the_images_and_global_generators_alone(kind: str) -> None:
    images = pictures(2).clone()
    torch.manual_seed(1)
    np.random.seed(1)
    once = corrupt(kind, images, 4)
    assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(1)))
    assert np.random.random() == np.random.RandomState(1).random()
    assert torch.equal(corrupt(kind, images, 4), once)
    assert torch.equal(images, pictures(2))


@pytest.mark.parametrize("kind", KINDS)
def test_only_random_corruptions_depend_on_seed_and_index(kind: str) -> None:
    images = pictures(1).expand(3, -1, -1, -1)
    once = corrupt(kind, images, 3)
    is_random = kind in RANDOM
    assert torch.equal(once[0], once[1]) is not is_random
    assert torch.equal(once, corrupt(kind, images, 3, seed=1)) is not is_random
    assert torch.equal(once[1:], corrupt(kind, images[1:], 3, first=1))


@pytest.mark.parametrize("kind", KINDS)
def test_each_severity_is_another_image(kind: str) -> None:
    images = pictures(8)
    found = [images, *(corrupt(kind, images, severity) for severity in SEVERITIES)]
    for one in range(6):
        for other in range(one):
            assert not torch.equal(found[one], found[other])


@pytest.mark.parametrize("kind", KINDS)
def test_severities_rise_where_the_published_table_does(kind: str) -> None:
    images = pictures()
    quality = [error(corrupt(kind, images, severity), images) for severity in SEVERITIES]
    for severity in range(1, 5):
        if severity not in NOT_FALLING.get(kind, ()):
            assert quality[severity] < quality[severity - 1], (severity, quality)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 8, 8), (3, 8, 21), (3, 40, 12)])
def test_every_shape_comes_back_as_it_was(kind: str, shape: tuple[int, int, int]) -> None:
    images = pictures(3, *shape)
    for severity in SEVERITIES:
        found = corrupt(kind, images, severity)
        assert (found.shape, found.dtype) == (images.shape, torch.uint8)
    unchanged = kind == "saturate" and shape[0] == 1  # nothing has a colour
    assert torch.equal(found, images) is unchanged


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [0, 255])
def test_black_and_white_images_are_no_exception(kind: str, level: int) -> None:
    with np.errstate(divide="raise", invalid="raise"):
        for channels in (1, 3):
            for severity in SEVERITIES:
                found = corrupt(kind, flat(level, channels), severity).double()
                assert abs(float(found.mean()) - level) < 0.75 * 255


def test_no_images_are_no_exception() -> None:
    assert corrupt("fog", torch.zeros(0, 3, 32, 32, dtype=torch.uint8), 1).shape == (0, 3, 32, 32)


@pytest.mark.parametrize(
    ("images", "severity", "message"),
    [
        (torch.zeros(2, 3, 32, 32), 1, r"\(2, 3, 32, 32\) torch.float32"),
        (flat(0, channels=2), 1, "1 or 3"),
        (flat(0)[0], 1, r"\(3, 32, 32\)"),
        (flat(0, size=7), 1, r"8x8 or larger, found \(7, 7\)"),
        (flat(0), 0, "severity must be 1 to 5, found 0"),
        (flat(0), 6, "severity must be 1 to 5, found 6"),
    ],
)
def test_a_misfit_is_named(images: torch.Tensor, severity: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        corrupt("contrast", images, severity)


def test_draws_for_other_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="draws must be for 4 examples, found 3"):
        members(Corruption)["contrast"]().corrupt(flat(0), 1, Draws(0, torch.arange(3)))


def test_values_are_cut_off_to_levels_and_whole_levels_stay() -> None:
    levels = np.arange(256.0).reshape(1, 1, 16, 16)
    assert (truncated(levels / 255) == levels).all()
    assert (truncated((levels + 0.9) / 255) == levels).all()
    assert (truncated(levels / 255 - 1) == 0).all()


# Noise


@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_noise_has_its_deviation(severity: int) -> None:
    deviation = (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1]
    noise = (corrupt("gaussian-noise", flat(128, count=32), severity).double() + 0.5) / 255 - 128 / 255
    assert float(noise.mean()) == pytest.approx(0, abs=0.001)
    assert float(noise.std()) == pytest.approx(deviation, rel=0.01)
    assert stats.kstest(noise.flatten()[:2000].numpy() / deviation, "norm").pvalue > 1e-3


@pytest.mark.parametrize("severity", SEVERITIES)
def test_speckle_noise_grows_with_the_pixel(severity: int) -> None:
    share = (0.06, 0.1, 0.12, 0.16, 0.2)[severity - 1]
    for level in (40, 120):
        noise = (corrupt("speckle-noise", flat(level, count=32), severity).double() + 0.5 - level) / 255
        assert float(noise.std()) == pytest.approx(share * level / 255, rel=0.02)
    assert torch.equal(corrupt("speckle-noise", flat(0), severity), flat(0))


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("level", [1, 13, 128, 255])
def test_shot_noise_counts_photons(severity: int, level: int) -> None:
    white = (500, 250, 100, 75, 50)[severity - 1]
    pixels = flat(level, count=32).numpy() / 255
    corruption = members(Corruption)["shot-noise"]()
    photons = corruption.distort(pixels, severity, Draws(0, torch.arange(32))) * white
    assert np.abs(photons - np.rint(photons)).max() < 1e-9
    expected = white * level / 255
    assert photons.mean() == pytest.approx(expected, abs=4 * math.sqrt(expected / photons.size))
    assert photons.var() == pytest.approx(expected, rel=0.03)
    for count in {int(expected), int(expected + 2 * math.sqrt(expected))}:
        share = stats.poisson.cdf(count, expected)
        assert (np.rint(photons) <= count).mean() == pytest.approx(share, abs=4 * math.sqrt(share / photons.size))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_impulse_noise_replaces_its_share_by_both_extremes(severity: int) -> None:
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[severity - 1]
    found = corrupt("impulse-noise", flat(100, count=64), severity)
    assert set(found.flatten().tolist()) == {0, 100, 255}
    for extreme in (0, 255):
        assert float((found == extreme).double().mean()) == pytest.approx(share / 2, rel=0.08)
    in_one_channel = (found[:, 0] != 100) & (found[:, 1] == 100)
    assert float(in_one_channel.double().mean()) == pytest.approx(share, rel=0.1)
    assert ((found.amin(dim=1) == 0) & (found.amax(dim=1) == 255)).any()
