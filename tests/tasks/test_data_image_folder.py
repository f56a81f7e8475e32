"""Image files in one folder per class."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from tasks.data.image_folder import ImageFolder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HEDGEROW_CACHE", str(tmp_path / "prepared"))
    return tmp_path / "prepared"


def draw(path: Path, width: int = 8, height: int = 6, shade: int = 0) -> np.ndarray:
    pixels = np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3) + np.uint8(shade)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "pictures"
    for shade, name in enumerate(("train/cat/b.png", "train/cat/a.png", "train/ant/deep/c.PNG", "test/cat/d.png")):
        draw(root / name, shade=shade)
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    return root


def test_classes_are_numbered_by_name_and_examples_ordered_by_path(folder):
    data = ImageFolder(root=folder, validation=0)
    train, test = data.load("train"), data.load("test")
    assert train.labels.tolist() == [0, 1, 1]
    assert train.images[:, 0, 0, 0].tolist() == [2, 1, 0]
    assert test.labels.tolist() == [1]
    assert np.array_equal(train.images[2].numpy(), draw(folder.parent / "same.png").transpose(2, 0, 1))


def test_the_signature_describes_the_images(folder):
    signature = ImageFolder(root=folder).signature()
    pixels = ImageFolder(root=folder, validation=0).load("train").images.numpy() / 255
    assert (signature.channels, signature.height, signature.width, signature.classes) == (3, 6, 8, 2)
    assert signature.mean == pytest.approx(pixels.mean(axis=(0, 2, 3)))
    assert signature.std == pytest.approx(pixels.std(axis=(0, 2, 3)))


def test_grey_images_have_one_channel(folder):
    images = ImageFolder(root=folder, validation=0, colour="grey").load("train").images
    assert images.shape == (3, 1, 6, 8)


def test_size_scales_the_shorter_side_and_keeps_the_centre(folder):
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 255
    Image.fromarray(pixels).save(folder / "test" / "cat" / "d.png")
    images = ImageFolder(root=folder, validation=0, size=5).load("test").images
    assert images.shape == (1, 3, 5, 5)
    assert images[..., 1:4].min() == 255


def test_images_that_have_the_size_already_keep_their_pixels(folder):
    for path in folder.rglob("*.[pP][nN][gG]"):
        draw(path, 6, 6)
    plain, sized = (ImageFolder(root=folder, validation=0, size=size).load("train") for size in (None, 6))
    assert np.array_equal(plain.images.numpy(), sized.images.numpy())


def test_the_first_image_of_another_size_is_named(folder):
    draw(folder / "train" / "cat" / "a.png", 9, 6)
    with pytest.raises(
        ValueError, match=r"train/cat/a\.png: 9x6 pixels where train/ant/deep/c\.PNG has 8x6; set `size`"
    ):
        ImageFolder(root=folder).load("train")


@pytest.mark.parametrize(
    "damage", [lambda content: content[: len(content) // 2], lambda content: b"", lambda content: b"x" * 99]
)
def test_a_damaged_image_is_named(damage, folder):
    path = folder / "train" / "cat" / "b.png"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"train/cat/b\.png: not a readable image"):
        ImageFolder(root=folder).load("train")


def test_missing_and_empty_folders_are_named(folder, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere/train: no such folder; .*train/<class>/"):
        ImageFolder(root=tmp_path / "nowhere").identity()
    (folder / "train" / "bee").mkdir()
    with pytest.raises(ValueError, match=r"train/bee: no images"):
        ImageFolder(root=folder).fingerprint()
    (folder / "train" / "bee").rmdir()
    shutil.rmtree(folder / "test")
    with pytest.raises(ValueError, match=r"pictures/test: no images"):
        ImageFolder(root=folder).fingerprint()


def test_a_test_class_that_training_lacks_is_named(folder):
    draw(folder / "test" / "dog" / "e.png")
    with pytest.raises(ValueError, match=r"test/dog: not a class of .*train"):
        ImageFolder(root=folder).fingerprint()


def test_the_fingerprint_follows_content_and_not_place_or_time(folder, tmp_path):
    before = ImageFolder(root=folder).fingerprint()
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    os.utime(folder / "train" / "cat" / "a.png", (1, 1))
    assert ImageFolder(root=tmp_path / "copy").fingerprint() == before == ImageFolder(root=folder).fingerprint()
    draw(folder / "train" / "cat" / "a.png", shade=100)
    changed = ImageFolder(root=folder).fingerprint()
    (folder / "train" / "cat" / "a.png").rename(folder / "train" / "cat" / "z.png")
    renamed = ImageFolder(root=folder).fingerprint()
    others = [ImageFolder(root=folder, size=4).fingerprint(), ImageFolder(root=folder, colour="grey").fingerprint()]
    assert len({before, changed, renamed, *others}) == 5


def test_a_second_fingerprint_reads_no_image(folder, monkeypatch):
    first = ImageFolder(root=folder).fingerprint()

    def refuse(path: Path) -> bytes:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert ImageFolder(root=folder).fingerprint() == first


def test_changed_images_are_prepared_anew(folder):
    data = ImageFolder(root=folder, validation=0)
    assert data.load("test").images[0, 0, 0, 0] == 3
    draw(folder / "test" / "cat" / "d.png", shade=50)
    os.utime(folder / "test" / "cat" / "d.png", (2, 2))
    assert data.load("test").images[0, 0, 0, 0] == 50


def test_a_folder_of_images_must_be_named():
    with pytest.raises(ValidationError, match="root"):
        ImageFolder()
