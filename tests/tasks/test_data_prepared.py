"""Arrays prepared once, mapped by many."""

from __future__ import annotations

import json
import multiprocessing
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.data import prepared as module
from tasks.data.mnist_mini import MnistMini
from tasks.data.prepared import Labelled, digest_of, is_prepared, prepare


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HEDGEROW_CACHE", str(tmp_path / "prepared"))
    monkeypatch.setattr(module, "_in_memory", {})
    return tmp_path / "prepared"


class Source:
    """Two small parts, and a count of how often they were decoded."""

    def __init__(self, log: Path):
        self.log = log

    def __call__(self) -> tuple[Labelled, Labelled]:
        with self.log.open("a") as log:
            log.write("decoded\n")
        time.sleep(0.2)
        images = np.random.default_rng(0).integers(0, 256, (50, 3, 4, 4), dtype=np.uint8)
        return Labelled(images[:40], np.arange(40)), Labelled(images[40:], np.arange(10))

    @property
    def decoded(self) -> int:
        return len(self.log.read_text().splitlines())


@pytest.fixture
def source(tmp_path) -> Source:
    return Source(tmp_path / "decoded.log")


def prepare_abc(source: Source, results: multiprocessing.Queue) -> None:
    results.put(prepare("abc", source).train.images.tobytes())


def test_the_second_time_maps_what_the_first_time_decoded(source):
    first, second = prepare("abc", source), prepare("abc", source)
    assert source.decoded == 1
    assert isinstance(second.train.images, np.memmap)
    assert np.array_equal(first.train.images, second.train.images)
    assert np.array_equal(second.test.labels, np.arange(10))
    assert is_prepared("abc")
    assert not is_prepared("abd")


def test_processes_that_prepare_at_once_decode_once_and_agree(source):
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    workers = [fork.Process(target=prepare_abc, args=(source, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    first, second = results.get(timeout=60), results.get(timeout=60)
    for worker in workers:
        worker.join()
    assert first == second == source()[0].images.tobytes()
    assert source.decoded == 2  # one of them is ours, just above


@pytest.mark.parametrize("damage", [lambda content: content[:-7], lambda content: content + b"\0"])
@pytest.mark.parametrize("name", ["train-images.npy", "test-labels.npy", "manifest.json"])
def test_a_file_of_another_size_is_made_again(name, damage, source, cache):
    whole = prepare("abc", source).train.images.tobytes()
    path = cache / "abc" / name
    path.write_bytes(damage(path.read_bytes()))
    assert prepare("abc", source).train.images.tobytes() == whole
    assert source.decoded == 2


def test_a_file_with_a_changed_byte_is_made_again_by_the_next_process(source, cache, monkeypatch):
    whole = prepare("abc", source).train.images.tobytes()
    path = cache / "abc" / "train-images.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    monkeypatch.setattr(module, "_intact", set())
    assert prepare("abc", source).train.images.tobytes() == whole
    assert source.decoded == 2


def test_what_a_killed_process_left_is_not_used(source, cache):
    (cache / "abc.partial").mkdir(parents=True)
    (cache / "abc.partial" / "train-images.npy").write_bytes(b"half")
    assert len(prepare("abc", source).train.labels) == 40
    assert not list(cache.glob("*.partial"))


def test_the_manifest_records_digests_and_exact_statistics(source, cache):
    arrays = prepare("abc", source)
    manifest = json.loads((cache / "abc" / "manifest.json").read_text())
    assert {len(record["sha256"]) for record in manifest["files"].values()} == {64}
    pixels = arrays.train.images / 255
    assert arrays.mean == pytest.approx(pixels.mean(axis=(0, 2, 3)), abs=1e-12)
    assert arrays.std == pytest.approx(pixels.std(axis=(0, 2, 3)), abs=1e-12)


def test_an_unusable_cache_folder_means_decoding_into_memory(tmp_path, monkeypatch, caplog):
    usable = MnistMini().load("train")
    (tmp_path / "file").touch()
    monkeypatch.setenv("HEDGEROW_CACHE", str(tmp_path / "file" / "below"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        in_memory = MnistMini().load("train")
    assert torch.equal(in_memory.images, usable.images)
    assert torch.equal(in_memory.labels, usable.labels)
    assert "cannot be used" in caplog.text


def test_an_error_of_the_source_is_not_taken_for_one_of_the_cache(cache):
    def broken() -> tuple[Labelled, Labelled]:
        raise OSError("no network")

    with pytest.raises(OSError, match="no network"):
        prepare("abc", broken)
    assert not (cache / "abc").exists()


def test_a_mapped_split_reaches_pytorch_without_a_copy_a_warning_or_a_way_back_to_the_file(cache):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        test = MnistMini().load("test")
        train = MnistMini(validation=0).load("train")
    before = test.images[0].clone()
    test.images[0] = 7
    assert torch.equal(MnistMini().load("test").images[0], before)
    files = [f"{cache}/{MnistMini().fingerprint()}/{name}-images.npy" for name in ("train", "test")]
    if Path("/proc/self/maps").exists():
        spans = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        for file, images in zip(files, (train.images, test.images), strict=True):
            bounds = [[int(edge, 16) for edge in span[0].split("-")] for span in spans if span[-1] == file]
            assert any(low <= images.data_ptr() < high for low, high in bounds)


def test_a_fingerprint_names_content_not_places(monkeypatch, tmp_path):
    golden = "56c86b9e147f10499d478917a2e225ac093b436bbbbebe851e4c864e35a066a7"
    assert MnistMini().fingerprint() == golden
    monkeypatch.setenv("HEDGEROW_CACHE", str(tmp_path / "elsewhere"))
    MnistMini().load("test")
    assert MnistMini().fingerprint() == golden
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
