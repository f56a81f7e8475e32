"""What is held out, left out, divided and mislabelled."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tasks.data import Dataset, Examples
from tasks.data.mnist_mini import MnistMini
from tasks.data.partitions import Partition
from tasks.data.partitions.class_ranges import ClassRanges
from tasks.data.partitions.iid import Iid
from tasks.data.partitions.stratified import Stratified
from tasks.data.splits import class_by_class, noisy, shuffled, stratified


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEDGEROW_CACHE", str(tmp_path_factory.mktemp("prepared")))
        yield


def pictures(examples: Examples) -> set[bytes]:
    return {image.numpy().tobytes() for image in examples.images}


def frequencies(examples: Examples, classes: int = 10) -> np.ndarray:
    return np.bincount(examples.labels.numpy(), minlength=classes)


def whole() -> Examples:
    return MnistMini(validation=0).load("train")


def same(left: Examples, right: Examples) -> bool:
    return torch.equal(left.images, right.images) and torch.equal(left.labels, right.labels)


def test_the_splits_share_no_image_and_leave_none_out():
    data = MnistMini()
    train, validation, test = (pictures(data.load(split)) for split in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (9000, 1000, 2000)
    assert not train & validation
    assert not (train | validation) & test
    assert train | validation == pictures(whole())


@pytest.mark.parametrize(
    ("split", "data"), [("validation", MnistMini(validation=777)), ("train", MnistMini(subset=333))]
)
def test_held_out_and_kept_examples_have_the_class_frequencies_of_the_whole(split, data):
    chosen, everything = frequencies(data.load(split)), frequencies(whole())
    assert chosen.sum() in (777, 333)
    assert np.abs(chosen - chosen.sum() * everything / everything.sum()).max() <= 1.1  # two roundings of a half


def test_another_split_seed_holds_out_other_examples_and_leaves_the_test_part_alone():
    one, other = MnistMini(split_seed=0), MnistMini(split_seed=1)
    overlap = pictures(one.load("validation")) & pictures(other.load("validation"))
    assert len(overlap) < 200  # a hundred by chance
    assert same(one.load("test"), other.load("test"))


def test_the_global_generators_neither_decide_nor_notice():
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = MnistMini(subset=100, label_noise=0.5).load("train")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    torch.manual_seed(2)
    assert same(first, MnistMini(subset=100, label_noise=0.5).load("train"))


def test_choices_are_the_same_on_every_machine():
    labels = np.arange(20) % 3
    assert shuffled(8, 7, "golden").tolist() == [3, 6, 1, 5, 4, 7, 2, 0]
    assert stratified(labels, 6, 7, "golden").tolist() == [3, 5, 6, 8, 13, 16]
    assert noisy(labels[:8], np.arange(8), 0.5, 3, 7, "golden").tolist() == [0, 2, 2, 2, 1, 0, 1, 1]


def test_leftover_seats_go_to_the_largest_remainders():
    labels = np.repeat([0, 1, 2], [5, 3, 2])
    assert np.bincount(labels[stratified(labels, 4, 0)]).tolist() == [2, 1, 1]  # shares 2.0, 1.2, 0.8
    assert np.bincount(labels[stratified(labels, 9, 0)]).tolist() == [4, 3, 2]  # shares 4.5, 2.7, 1.8


def test_shuffles_are_uniform():
    firsts = np.bincount([shuffled(5, seed)[0] for seed in range(2000)], minlength=5)
    assert firsts.min() > 330
    assert sorted(class_by_class(np.array([1, 0, 1, 0]), 3).tolist()[:2]) == [1, 3]


@pytest.mark.parametrize("rate", [0.1, 0.25, 1.0])
def test_label_noise_changes_exactly_its_share_of_training_labels_to_other_classes(rate):
    clean, data = MnistMini().load("train"), MnistMini(label_noise=rate)
    mislabelled = data.load("train")
    assert torch.equal(mislabelled.images, clean.images)
    assert int((mislabelled.labels != clean.labels).sum()) == rate * 9000
    assert mislabelled.labels.min() >= 0
    assert mislabelled.labels.max() <= 9
    for split in ("validation", "test"):
        assert same(data.load(split), MnistMini().load(split))


def test_label_noise_is_symmetric():
    clean, mislabelled = MnistMini().load("train").labels, MnistMini(label_noise=1).load("train").labels
    shifts = torch.bincount((mislabelled - clean) % 10, minlength=10)
    assert shifts[0] == 0
    assert shifts[1:].min() > 880  # a thousand each, by chance


def test_more_noise_keeps_the_labels_that_less_noise_changed():
    clean, some, more = (MnistMini(label_noise=rate).load("train").labels for rate in (0, 0.1, 0.2))
    assert torch.equal(some[some != clean], more[some != clean])


@pytest.mark.parametrize("kind", [Iid, Stratified, ClassRanges])
def test_parts_are_disjoint_and_together_complete(kind: type[Partition]):
    parts = [MnistMini(partition=kind(parts=3, index=index)) for index in range(3)]
    seen = [pictures(part.load("train")) for part in parts]
    assert sum(map(len, seen)) == 9000
    assert set().union(*seen) == pictures(MnistMini().load("train"))
    for part in parts:
        assert not pictures(part.load("train")) & pictures(part.load("validation"))


@pytest.mark.parametrize("kind", [Iid, Stratified])
def test_random_parts_are_of_one_size_and_judged_on_the_same_examples(kind: type[Partition]):
    parts = [MnistMini(partition=kind(parts=7, index=index), split_seed=3) for index in range(7)]
    sizes = [len(part.load("train")) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    for split in ("validation", "test"):
        assert all(same(part.load(split), MnistMini(split_seed=3).load(split)) for part in parts)


def test_stratified_parts_have_the_frequencies_of_the_whole_and_iid_parts_do_not():
    def spread(kind: type[Partition]) -> int:
        counts = [frequencies(MnistMini(partition=kind(parts=4, index=i)).load("train")) for i in range(4)]
        return int(np.ptp(counts, axis=0).max())

    assert spread(Stratified) <= 1
    assert spread(Iid) > 10


def test_class_ranges_keep_their_classes_in_every_split_and_count_them_from_zero():
    part = MnistMini(partition={"kind": "class-ranges", "parts": 2, "index": 1})
    assert part.signature().classes == 5
    for split in ("train", "validation", "test"):
        everything = MnistMini().load(split)
        kept = everything.labels >= 5
        assert same(part.load(split), Examples(everything.images[kept], everything.labels[kept] - 5))


def test_class_ranges_that_do_not_divide_the_classes_still_cover_them():
    ranges = [ClassRanges(parts=4, index=index).class_range(10) for index in range(4)]
    assert [list(each) for each in ranges] == [[0, 1, 2], [3, 4, 5], [6, 7], [8, 9]]


def test_noise_within_a_class_range_stays_within_it():
    part = ClassRanges(parts=5, index=4)
    clean, mislabelled = (MnistMini(partition=part, label_noise=rate).load("train").labels for rate in (0, 0.5))
    assert int((clean != mislabelled).sum()) == round(len(clean) / 2)
    assert set(mislabelled.tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"partition": {"kind": "class-ranges", "parts": 11, "index": 0}}, "11 class ranges .* 10 classes"),
        ({"partition": {"kind": "iid", "parts": 2, "index": 2}}, "index 2 .* allowed: 0 to 1"),
        ({"partition": {"kind": "idd", "parts": 2, "index": 1}}, "did you mean 'iid'"),
        ({"label_noise": 1.5}, "less than or equal to 1"),
        ({"validation": -1}, "greater than or equal to 0"),
    ],
)
def test_what_makes_no_sense_fails_before_any_data_are_read(fields, said):
    with pytest.raises(ValidationError, match=said):
        MnistMini(**fields)


@pytest.mark.parametrize(
    ("data", "split", "said"),
    [
        (MnistMini(validation=10_000), "train", "`validation` = 10000 .* 10000 of mnist-mini"),
        (MnistMini(validation=2000, subset=8001), "train", "`validation` = 2000 and `subset` = 8001"),
        (MnistMini(validation=0), "validation", "the validation split is empty"),
        (MnistMini(subset=3, partition=Iid(parts=4, index=3)), "train", "the train split is empty.*part 3 of 4"),
        (MnistMini(label_noise=0.1, partition=ClassRanges(parts=10, index=0)), "train", "at least two classes"),
    ],
)
def test_too_few_examples_are_an_error_that_counts_them(data: Dataset, split, said):
    with pytest.raises(ValueError, match=said):
        data.load(split)


def test_everything_that_changes_the_examples_is_in_the_identity():
    plain = MnistMini().identity()
    assert set(plain) == {"kind", "fingerprint"}
    changed = {"validation": 5, "subset": 5, "label_noise": 0.5, "split_seed": 5, "partition": Iid(parts=2, index=0)}
    for name, value in changed.items():
        identity = MnistMini(**{name: value}).identity()
        assert set(identity) - set(plain) == {name}
        assert identity["fingerprint"] == plain["fingerprint"]
