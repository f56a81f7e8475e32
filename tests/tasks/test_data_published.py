"""Data sets that have one published content: MNIST and its miniature, CIFAR, SVHN."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import os
import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from tasks.component import members
from tasks.data import Dataset, build_mnist_mini, mnist_mini
from tasks.data.cifar10 import Cifar10
from tasks.data.cifar100 import Cifar100
from tasks.data.mnist import Mnist
from tasks.data.mnist_mini import MnistMini
from tasks.data.prepared import is_prepared, prepare
from tasks.data.svhn import Svhn

DATA = Path(os.environ.get("HEDGEROW_DATA", "/nowhere"))
needs_mnist = pytest.mark.skipif(
    not any(
        (DATA / below / f"train-images-idx3-ubyte{end}").exists() for below in ("", "MNIST/raw") for end in ("", ".gz")
    ),
    reason="HEDGEROW_DATA names no folder with MNIST",
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HEDGEROW_CACHE", str(tmp_path / "prepared"))
    return tmp_path / "prepared"


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}i", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


RANDOM = np.random.default_rng(0)
IMAGES = {
    "train": RANDOM.integers(0, 256, (30, 28, 28), dtype=np.uint8),
    "t10k": RANDOM.integers(0, 256, (10, 28, 28), dtype=np.uint8),
}
LABELS = {"train": np.arange(30, dtype=np.uint8) % 10, "t10k": np.arange(10, dtype=np.uint8)}


@pytest.fixture
def small(monkeypatch) -> dict[str, bytes]:
    """Four files in MNIST's format, and their checksums in place of MNIST's."""
    files = {f"{part}-images-idx3-ubyte": idx(IMAGES[part]) for part in IMAGES}
    files |= {f"{part}-labels-idx1-ubyte": idx(LABELS[part]) for part in LABELS}
    monkeypatch.setattr(Mnist, "checksums", {name: hashlib.md5(content).hexdigest() for name, content in files.items()})
    return files


def put(files: dict[str, bytes], folder: Path, zipped: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}{'.gz' * zipped}").write_bytes(gzip.compress(content) if zipped else content)
    return folder


def test_every_data_set_is_found_by_its_name():
    assert set(members(Dataset)) >= {
        "mnist-mini",
        "mnist",
        "fashion-mnist",
        "cifar10",
        "cifar100",
        "svhn",
        "image-folder",
    }


def test_listing_the_data_sets_does_not_import_torchvision():
    code = "import sys; from tasks.component import members; from tasks.data import Dataset; members(Dataset); "
    subprocess.run([sys.executable, "-c", f"{code} assert 'torchvision' not in sys.modules"], check=True)


@pytest.mark.parametrize("below", [".", "MNIST/raw"])
@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_is_read_from_where_torchvision_or_the_user_put_it(below, zipped, small, tmp_path):
    put(small, tmp_path / "root" / below, zipped)
    data = Mnist(root=tmp_path / "root", validation=0)
    train, test = data.load("train"), data.load("test")
    assert np.array_equal(train.images[:, 0].numpy(), IMAGES["train"])
    assert np.array_equal(test.labels.numpy(), LABELS["t10k"])
    assert test.labels.dtype == torch.int64


def test_the_root_is_taken_from_the_environment_of_whoever_reads(small, tmp_path, monkeypatch):
    data = Mnist(validation=0)
    monkeypatch.setenv("HEDGEROW_DATA", str(put(small, tmp_path / "root")))
    assert len(data.load("train")) == 30


def test_where_the_files_are_is_no_part_of_the_identity(small, tmp_path):
    here, there = (Mnist(root=put(small, tmp_path / name)) for name in ("here", "there"))
    assert here.identity() == there.identity() == Mnist(download=True).identity()


def test_missing_files_are_named_at_once_with_the_ways_to_get_them(small, tmp_path):
    put(small, tmp_path / "root")
    (tmp_path / "root" / "t10k-labels-idx1-ubyte").unlink()
    data = Mnist(root=tmp_path / "root")
    for ask in (data.fingerprint, data.identity, lambda: data.load("test")):
        with pytest.raises(
            ValueError, match=r"root/MNIST/raw lacks t10k-labels-idx1-ubyte; .*HEDGEROW_DATA.*download: true"
        ):
            ask()


def test_files_may_go_once_they_are_prepared(small, tmp_path):
    data = Mnist(root=put(small, tmp_path / "root"))
    before = data.load("train").images.clone()
    shutil.rmtree(tmp_path / "root")
    assert torch.equal(data.load("train").images, before)


@pytest.mark.parametrize(("zipped", "said"), [(False, "not that of the published mnist file"), (True, "damaged")])
def test_a_damaged_file_is_named_and_nothing_is_prepared(zipped, said, small, tmp_path):
    path = put(small, tmp_path / "root", zipped) / f"train-images-idx3-ubyte{'.gz' * zipped}"
    path.write_bytes(path.read_bytes()[:-9])
    data = Mnist(root=tmp_path / "root")
    with pytest.raises(ValueError, match=f"{path.name}: .*{said}"):
        data.load("train")
    assert not is_prepared(data.fingerprint())


def test_download_asks_torchvision_for_what_is_missing_and_for_nothing_else(small, tmp_path, monkeypatch):
    asked = []

    def download(root: Path, download: bool) -> None:
        asked.append(root)
        put(small, root / "MNIST" / "raw")

    monkeypatch.setattr(importlib.import_module("torchvision.datasets"), "MNIST", download)
    data = Mnist(root=tmp_path / "root", download=True)
    assert data.fingerprint()
    assert not asked
    assert len(data.load("test")) == 10
    assert asked == [tmp_path / "root"]
    shutil.rmtree(tmp_path / "prepared")
    data.load("test")
    assert len(asked) == 1


def batch(first: int, count: int, **labels: list[int]) -> bytes:
    pixels = np.arange(first, first + count, dtype=np.uint8)[:, None] + np.zeros((1, 3072), np.uint8)
    pixels[:, 0], pixels[:, 1024], pixels[:, 33] = 201, 202, 203
    return pickle.dumps({b"data": pixels, **{name.encode(): values for name, values in labels.items()}})


def test_cifar_batches_are_joined_in_order_with_channels_first():
    files = {f"data_batch_{number}": batch(10 * number, 2, labels=[number, 9]) for number in (5, 4, 3, 2, 1)}
    train, test = Cifar10().decode({**files, "test_batch": batch(90, 1, labels=[7])})
    assert train.labels.tolist() == [1, 9, 2, 9, 3, 9, 4, 9, 5, 9]
    assert train.images[:, 2, 31, 31].tolist() == [10, 11, 20, 21, 30, 31, 40, 41, 50, 51]
    assert (train.images[0, 0, 0, 0], train.images[0, 1, 0, 0], train.images[0, 0, 1, 1]) == (201, 202, 203)
    assert (test.images.shape, test.labels.tolist()) == ((1, 3, 32, 32), [7])


def test_cifar100_takes_the_fine_labels():
    files = {name: batch(0, 2, coarse_labels=[1, 2], fine_labels=[98, 99]) for name in ("train", "test")}
    train, _test = Cifar100().decode(files)
    assert train.labels.tolist() == [98, 99]


def test_svhn_counts_the_digit_zero_as_class_zero(monkeypatch):
    pixels = RANDOM.integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    fake = ModuleType("scipy.io")
    fake.loadmat = lambda file: {"X": pixels, "y": np.array([[10], [1], [9], [10]], np.uint8)}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "scipy", ModuleType("scipy"))
    monkeypatch.setitem(sys.modules, "scipy.io", fake)
    train, _test = Svhn().decode({"train_32x32.mat": b"", "test_32x32.mat": b""})
    assert train.labels.tolist() == [0, 1, 9, 0]
    assert np.array_equal(train.images[2, 1], pixels[:, :, 1, 2])


def test_the_miniature_has_the_statistics_it_claims():
    arrays = prepare(MnistMini().fingerprint(), MnistMini().read)
    assert MnistMini().whole().mean == pytest.approx(arrays.mean, abs=5e-5)
    assert MnistMini().whole().std == pytest.approx(arrays.std, abs=5e-5)
    assert arrays.train.images.shape == (10_000, 1, 28, 28)
    assert arrays.test.images.shape == (2000, 1, 28, 28)
    assert np.bincount(arrays.test.labels).min() > 170
    assert mnist_mini._FILE.stat().st_size < 4_000_000


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:-9], lambda content: b"", lambda content: content[:5000] + b"?" + content[5001:]],
)
def test_a_damaged_miniature_is_named(damage, tmp_path, monkeypatch):
    path = tmp_path / "mnist_mini.npz"
    path.write_bytes(damage(mnist_mini._FILE.read_bytes()))
    monkeypatch.setattr(mnist_mini, "_FILE", path)
    with pytest.raises(ValueError, match=r"mnist_mini\.npz: .*install"):
        MnistMini().load("train")


def test_a_miniature_of_other_images_is_refused(tmp_path, monkeypatch):
    with np.load(mnist_mini._FILE) as archive:
        arrays = dict(archive)
    arrays["test_labels"] = arrays["test_labels"][::-1]
    np.savez_compressed(tmp_path / "other.npz", **arrays)
    monkeypatch.setattr(mnist_mini, "_FILE", tmp_path / "other.npz")
    with pytest.raises(ValueError, match="not what this version of hedgerow expects"):
        MnistMini().read()


@needs_mnist
def test_the_miniature_is_made_again_bit_for_bit(tmp_path):
    for name in ("first.npz", "second.npz"):
        build_mnist_mini.build(DATA, tmp_path / name)
    assert (tmp_path / "first.npz").read_bytes() == (tmp_path / "second.npz").read_bytes()
    with np.load(tmp_path / "first.npz") as made, np.load(mnist_mini._FILE) as shipped:
        assert all(np.array_equal(made[name], shipped[name]) for name in mnist_mini._ARRAYS)


@needs_mnist
def test_mnist_has_the_statistics_it_claims():
    data = Mnist()
    arrays = prepare(data.fingerprint(), data.read)
    assert data.known.mean == pytest.approx(arrays.mean, abs=5e-5)
    assert data.known.std == pytest.approx(arrays.std, abs=5e-5)
    assert (len(data.load("train")), len(data.load("validation")), len(data.load("test"))) == (54_000, 6000, 10_000)
