"""Each corruption computes its formula: by hand, as a plain loop, or as scipy and colorsys have it."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from tasks.attacks.draws import Draws
from tasks.component import members
from tasks.corruptions import SEVERITIES, Corruption, Pixels, luma, truncated
from tasks.corruptions.outlines import outlines
from tasks.corruptions.plasma import plasma
from tasks.corruptions.sampling import sampled, stretched, zoomed
from tasks.corruptions.smoothing import filtered
from tasks.corruptions.streaks import streaked
from tests.tasks.pictures import corrupt, distorted, flat, impulse, pictures

# Blur


@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_blur_spreads_a_point_by_its_deviation(severity: int) -> None:
    sigma = (0.4, 0.6, 0.7, 0.8, 1)[severity - 1]
    place = np.arange(-7, 8)
    bell = np.exp(-(place**2) / (2 * sigma**2)) * (np.abs(place) <= int(4 * sigma + 0.5))
    bell /= bell.sum()
    assert np.allclose(distorted("gaussian-blur", impulse(), severity)[0, 0], bell[:, None] * bell, atol=1e-12)


def test_defocus_blur_is_a_softened_disk() -> None:
    tap = math.exp(-1 / (2 * 0.4**2))
    softening = np.array([tap, 1, tap]) / (1 + 2 * tap)
    assert np.allclose(
        distorted("defocus-blur", impulse(), 1)[0, 0, 6:9, 6:9], softening[:, None] * softening, atol=1e-12
    )
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]]) / 5
    assert np.allclose(distorted("defocus-blur", impulse(), 4)[0, 0, 6:9, 6:9], cross, atol=1e-5)
    assert np.allclose(distorted("defocus-blur", impulse(), 5)[0, 0, 6:9, 6:9], 1 / 9, atol=1e-5)


def test_filters_mirror_the_image_without_its_edge() -> None:
    pixels = pictures(2).numpy() / 255
    left = np.array([[0.0, 0, 0], [1, 0, 0], [0, 0, 0]])
    wanted = np.pad(pixels, ((0, 0), (0, 0), (0, 0), (1, 0)), mode="reflect")[..., :-1]
    assert np.allclose(filtered(pixels, left), wanted, atol=1e-12)


def test_glass_blur_copies_neighbours_as_the_published_loop_does() -> None:
    image = pictures(1)
    draws = Draws(0, torch.arange(1)).under("glass-blur", 4)
    pixels = ndimage.gaussian_filter(image.numpy()[0] / 255, (0, 0.25, 0.25), mode="nearest")
    pixels = np.floor(pixels * 255 + 1e-6).transpose(1, 2, 0)
    for each in range(2):
        up = draws.under("pass", each).integers(2, (30, 30), "up")[0].tolist()
        left = draws.under("pass", each).integers(2, (30, 30), "left")[0].tolist()
        for row in range(31, 1, -1):
            for column in range(31, 1, -1):
                other = (row - up[row - 2][column - 2], column - left[row - 2][column - 2])
                pixels[row, column], pixels[other] = pixels[other], pixels[row, column]
    wanted = ndimage.gaussian_filter(pixels / 255, (0.25, 0.25, 0), mode="nearest")
    found = corrupt("glass-blur", image, 4)[0].numpy().transpose(1, 2, 0)
    assert (found == np.floor(wanted * 255 + 1e-6)).all()


def test_a_streak_is_one_sided_and_falls_like_a_gaussian() -> None:
    weights = np.exp(-(np.arange(13) ** 2) / (2 * 2.0**2))
    weights /= weights.sum()
    pixels = np.repeat(impulse(27), 4, axis=0)
    found = streaked(pixels, 6, 2, np.array([0.0, -90, 45, 180]))
    rounded = np.rint(weights * 255) / 255
    assert np.allclose(found[0, 0, 13, 13:0:-1], rounded, atol=1e-12)  # reads to the right: the light goes left
    assert np.allclose(found[1, 0, 13:26, 13], rounded, atol=1e-12)  # reads upwards: it falls
    assert np.allclose(found[3, 0, 13, 13:26], rounded, atol=1e-12)
    assert np.count_nonzero(found[2, 0]) == np.count_nonzero(np.diag(found[2, 0]))
    assert np.allclose(found.sum(axis=(1, 2, 3)), 1, atol=0.03)


def test_motion_blur_keeps_within_its_angles_and_snow_falls() -> None:
    for kind, low, high in (("motion-blur", -45, 45), ("snow", -135, -45)):
        corruption = members(Corruption)[kind]()
        seen: list[Pixels] = []

        def spy(pixels: Pixels, radius: float, sigma: float, degrees: Pixels, seen: list[Pixels] = seen) -> Pixels:
            seen.append(degrees)
            return streaked(pixels, radius, sigma, degrees)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"tasks.corruptions.{kind.replace('-', '_')}.streaked", spy)
            corruption.corrupt(pictures(), 1, Draws(0, torch.arange(48)))
        assert low <= seen[0].min() < low + 10
        assert high - 10 < seen[0].max() <= high


@pytest.mark.parametrize("factor", [1, 1.06, 1.13, 1.25, 1.75, 2.25])
def test_zooming_agrees_with_scipy(factor: float) -> None:
    pixels = pictures(2).numpy() / 255
    kept = math.ceil(32 / factor)
    first = (32 - kept) // 2
    middle = pixels[:, :, first : first + kept, first : first + kept]
    grown = ndimage.zoom(middle, (1, 1, factor, factor), order=1)
    trim = (grown.shape[2] - 32) // 2
    assert np.allclose(zoomed(pixels, factor), grown[:, :, trim : trim + 32, trim : trim + 32], atol=1e-12)


def test_zoom_blur_averages_the_published_factors() -> None:
    pixels = pictures(2).numpy() / 255
    for severity, count in zip(SEVERITIES, (7, 12, 16, 21, 26), strict=True):
        views = [pixels, *(zoomed(pixels, factor) for factor in np.arange(1, 1.3, 0.01)[:count])]
        assert np.allclose(distorted("zoom-blur", pixels, severity), np.mean(views, axis=0), atol=1e-9)


# Weather


def test_fog_keeps_the_brightest_value_and_takes_contrast() -> None:
    images = pictures()
    for severity in SEVERITIES:
        found = corrupt("fog", images, severity)
        assert (found.amax(dim=(1, 2, 3)) <= images.amax(dim=(1, 2, 3))).all()
    assert float(found.double().std(dim=(1, 2, 3)).mean()) < float(images.double().std(dim=(1, 2, 3)).mean())
    white = 1 * (1 + 1.5 * plasma(32, 32, 1.75, Draws(0, torch.arange(4)).under("fog", 5))) / (1 + 1.5)
    assert (corrupt("fog", flat(255), 5).numpy() == truncated(white)).all()


def displacement(land: Pixels, step: int) -> float:
    """How far the middles of a grid's squares lie from the mean of their corners."""
    corners = land[..., ::step, ::step]
    rows = corners + np.roll(corners, -1, axis=2)
    squares = (rows + np.roll(rows, -1, axis=3)) / 4
    return float((land[..., step // 2 :: step, step // 2 :: step] - squares).std())


def test_clouds_fill_the_range_and_are_smoother_if_they_decay_faster() -> None:
    clouds = [plasma(32, 32, decay, Draws(0, torch.arange(50))) for decay in (1.2, 1.75, 3)]
    roughness = [np.abs(np.diff(land, axis=3)).mean() for land in clouds]
    assert roughness[0] > roughness[1] > roughness[2]
    for land in clouds:
        assert (land.min(axis=(1, 2, 3)) == 0).all()
        assert (land.max(axis=(1, 2, 3)) == 1).all()
        seam, inside = np.abs(land[..., 0] - land[..., -1]).mean(), np.abs(np.diff(land, axis=3)).mean()
        assert seam < 1.5 * inside  # they wrap round
    for decay, land in zip((1.2, 1.75, 3), clouds, strict=True):
        assert displacement(land, 4) / displacement(land, 2) == pytest.approx(decay**2, rel=0.05)
    assert plasma(28, 20, 2, Draws(0, torch.arange(2))).shape == (2, 1, 28, 20)


def test_frost_adds_bright_blueish_ice() -> None:
    for severity, weight in zip(SEVERITIES, (0.2, 0.3, 0.4, 0.4, 0.45), strict=True):
        ice = corrupt("frost", flat(0, count=256), severity).double() / 255 / weight
        red, green, blue = ice.mean(dim=(0, 2, 3)).tolist()
        assert 0.5 < red < green < blue < 0.8
        assert 0.02 < float(ice.mean(dim=1).std(dim=(1, 2)).mean()) < 0.15
    for severity, weight in zip(SEVERITIES, (1, 1, 0.9, 0.85, 0.75), strict=True):
        kept = corrupt("frost", flat(100), severity).double() - corrupt("frost", flat(0), severity).double()
        assert float(kept.mean()) == pytest.approx(100 * weight, abs=1)


def test_snow_whitens_and_lets_flakes_fall_both_ways() -> None:
    images = flat(60, count=16)
    for severity, clear in zip(SEVERITIES, (0.95, 0.9, 0.9, 0.85, 0.8), strict=True):
        found = corrupt("snow", images, severity)
        ground = truncated(np.full((1,), clear * 60 / 255 + (1 - clear) * (60 / 255 * 1.5 + 0.5)))[0]
        assert int(found.min()) == ground
        assert torch.equal(found, found.flip(2, 3))
        assert int(found.max()) > ground + 10
        assert torch.equal(found[:, 0], found[:, 2])


def test_spatter_is_water_and_then_mud() -> None:
    images = flat(120, count=16)
    covered = []
    for severity in (1, 2, 3):
        found = corrupt("spatter", images, severity).double() - 120
        assert (found >= 0).all()
        red, green, blue = found.sum(dim=(0, 2, 3)).tolist()
        assert green == blue > red > 0
        assert float(found[:, 0].amax()) == pytest.approx(0.5 * 175, abs=1)
        covered.append(float((found[:, 0] > 0).double().mean()))
    assert 0 < covered[0] < covered[1] < covered[2] < 0.7
    for severity in (4, 5):
        found = corrupt("spatter", images, severity)
        assert tuple(found.amin(dim=(0, 2, 3)).tolist()) == (63, 42, 20)
        covered.append(float((found[:, 0] < 120).double().mean()))
        lightest_mud = found[:, 0][found[:, 0] < 120].max()
        assert int(lightest_mud) <= 0.2 * 120 + 0.8 * 63  # mud that covers less than 0.8 is left out
    assert 0 < covered[3] < covered[4] < 0.3


def test_outlines_are_one_pixel_wide_and_follow_the_shape() -> None:
    images = np.zeros((3, 16, 16))
    images[0, :, 8:] = 200
    images[1, 4:12, 4:12] = 200
    images[2] = np.linspace(0, 60, 16)  # a gentle slope
    found = outlines(images)
    assert (found[0].sum(axis=1) == 1).all()
    assert found[0, :, 7:9].any(axis=1).all()
    assert not found[1, 6:10, 6:10].any()
    assert ndimage.label(~found[1])[1] == 2  # a closed line: inside and outside
    assert not found[2].any()


def test_weak_edges_count_where_they_go_on_from_strong_ones() -> None:
    images = np.zeros((2, 12, 40))
    images[:, 6:] = 20  # a weak edge: four times 20, between 50 and 150
    images[0, 6:, :8] = 60
    found = outlines(images)
    assert found[0].any(axis=0).sum() > 30
    assert not found[1].any()


# Light and colour


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_shrinks_the_distance_to_each_channels_mean(severity: int) -> None:
    remains = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    image[:, 0, :4] = 200
    image[:, 1] = 77
    found = corrupt("contrast", image, severity)[0]
    assert (found[0, :4] == math.floor(100 + 100 * remains + 1e-6)).all()
    assert (found[0, 4:] == math.floor(100 - 100 * remains + 1e-6)).all()
    assert (found[1] == 77).all()
    assert (found[2] == 0).all()


def through_hsv(image: torch.Tensor, change: Callable[[float, float, float], tuple[float, float, float]]) -> Pixels:
    pixels = (image.numpy() / 255).transpose(1, 2, 0).reshape(-1, 3)
    changed = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in pixels]
    return np.array(changed).reshape(*image.shape[1:], 3).transpose(2, 0, 1)


def colours() -> torch.Tensor:
    """Many colours, with black, white, greys and pure ones among them."""
    image = pictures(1, 3, 16, 16)[0].clone()
    image[:, 0] = torch.arange(0, 256, 16, dtype=torch.uint8)
    image[:, 1, :8] = torch.tensor(
        [[0, 255, 255, 0, 0, 255, 9, 0], [0, 255, 0, 255, 0, 9, 255, 9], [0, 255, 0, 0, 255, 9, 9, 9]]
    )
    return image


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_raises_the_value_in_hsv(severity: int) -> None:
    added = (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1]
    wanted = through_hsv(colours(), lambda hue, saturation, value: (hue, saturation, min(value + added, 1)))
    assert (corrupt("brightness", colours()[None], severity)[0].numpy() == truncated(wanted)).all()
    grey = torch.arange(0, 256, 4, dtype=torch.uint8).view(1, 1, 8, 8)
    raised = (grey.double() + added * 255 + 1e-6).floor().clamp(max=255)
    assert torch.equal(corrupt("brightness", grey, severity).double(), raised)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_saturate_changes_the_saturation_in_hsv(severity: int) -> None:
    factor, added = ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))[severity - 1]
    wanted = through_hsv(colours(), lambda hue, saturation, value: (hue, min(saturation * factor + added, 1), value))
    assert (corrupt("saturate", colours()[None], severity)[0].numpy() == truncated(wanted)).all()


def test_grey_images_are_as_bright_as_they_look() -> None:
    grey = pictures(2, 1).numpy() / 255
    assert luma(grey) is grey
    assert np.allclose(luma(np.repeat(grey, 3, axis=1)), grey)


# Shape and storage


def test_sampling_at_whole_places_moves_pixels_and_mirrors_edges() -> None:
    pixels = pictures(2).numpy() / 255
    rows, columns = np.meshgrid(np.arange(32.0), np.arange(32.0), indexing="ij")
    for repeat_edge, mode in ((False, "reflect"), (True, "symmetric")):
        wanted = np.pad(pixels, ((0, 0), (0, 0), (5, 5), (5, 5)), mode=mode)  # type: ignore[call-overload]
        both = (np.stack([rows - 5, rows + 3]), np.stack([columns + 5, columns - 2]))
        found = sampled(pixels, *both, repeat_edge=repeat_edge)
        assert np.array_equal(found[0], wanted[0, :, 0:32, 10:42])
        assert np.array_equal(found[1], wanted[1, :, 8:40, 3:35])


def test_sampling_between_pixels_agrees_with_scipy() -> None:
    pixels = pictures(2).numpy() / 255
    places = np.random.default_rng(0).uniform(-8, 40, (2, 2, 32, 32))
    for repeat_edge, mode in ((False, "mirror"), (True, "reflect")):
        found = sampled(pixels, places[:, 0], places[:, 1], repeat_edge=repeat_edge)
        for image, place, one in zip(pixels, places, found, strict=True):
            wanted = [ndimage.map_coordinates(channel, place, order=1, mode=mode) for channel in image]
            assert np.allclose(one, wanted, atol=1e-12)


def test_stretching_brings_moved_points_back() -> None:
    before = np.array([[26.0, 26], [26, 6], [6, 6]])
    after = before + np.array([[[3.0, -2], [1, 2], [0, 4]], [[0, 0], [0, 0], [0, 0]]])
    rows, columns = stretched(32, 40, before, after)
    assert np.allclose(rows[1], np.arange(32)[:, None])
    assert np.allclose(columns[1], np.arange(40))
    for (x, y), (x_before, y_before) in zip(after[0].astype(int), before, strict=True):
        assert (columns[0, y, x], rows[0, y, x]) == (pytest.approx(x_before), pytest.approx(y_before))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_elastic_transform_agrees_with_scipy(severity: int) -> None:
    size, smoothness, shift = (
        (0, 0, 32 * 0.08),
        (32 * 0.05, 32 * 0.2, 32 * 0.07),
        (32 * 0.08, 32 * 0.06, 32 * 0.06),
        (32 * 0.1, 32 * 0.04, 32 * 0.05),
        (32 * 0.1, 32 * 0.03, 32 * 0.03),
    )[severity - 1]
    pixels, draws = pictures(2).numpy() / 255, Draws(0, torch.arange(2))
    found = distorted("elastic-transform", pixels, severity)
    rows, columns = np.meshgrid(np.arange(32.0), np.arange(32.0), indexing="ij")
    before = np.array([[26.0, 26], [26, 6], [6, 6]])
    for n in range(2):
        after = before + shift * (2 * draws.uniform((3, 2), "corners")[n].double().numpy() - 1)
        back = np.linalg.solve(np.column_stack([after, np.ones(3)]), before)
        sources = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ back
        noise = 2 * draws.uniform((2, 32, 32), "displacement")[n].double().numpy() - 1
        bend = [size * ndimage.gaussian_filter(each, smoothness, mode="reflect", truncate=3) for each in noise]
        for channel, one in zip(pixels[n], found[n], strict=True):
            moved = ndimage.map_coordinates(channel, [sources[..., 1], sources[..., 0]], order=1, mode="mirror")
            wanted = ndimage.map_coordinates(moved, [rows + bend[0], columns + bend[1]], order=1, mode="reflect")
            assert np.allclose(one, wanted, atol=1e-9)


def test_pixelate_averages_boxes_of_whole_pixels() -> None:
    row = torch.tensor([10, 20, 41, 80, 100, 130, 150, 255], dtype=torch.uint8)
    found = corrupt("pixelate", row.expand(1, 1, 8, 8), 4)
    assert found[0, 0, 3].tolist() == [10, 31, 31, 80, 100, 140, 140, 255]  # six columns, two of them from two pixels


def test_jpeg_compression_is_that_of_the_published_quality() -> None:
    for channels in (1, 3):
        image = pictures(1, channels)
        array = image[0].permute(1, 2, 0).numpy()
        for severity, quality in zip(SEVERITIES, (80, 65, 58, 50, 40), strict=True):
            content = BytesIO()
            Image.fromarray(array[..., 0] if channels == 1 else array).save(content, "JPEG", quality=quality)
            wanted = np.asarray(Image.open(content)).reshape(array.shape)
            assert (corrupt("jpeg-compression", image, severity)[0].permute(1, 2, 0).numpy() == wanted).all()
