"""Golden results: what a component computes may change only together with its `version`.

Where nothing but integers, orders and copies is involved, the bytes are compared. Where the kernels of a processor are,
it is figures, with room for another order of addition and none for another algorithm.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tasks.attacks.pgd import PGD as PGDAttack  # noqa: N811 - its objective has the same name
from tasks.component import Component
from tasks.data import Examples, Signature
from tasks.data.augmentation import Augmentation
from tasks.data.augmentation.crop_flip import CropFlip
from tasks.data.augmentation.none import Unchanged
from tasks.data.batches import Loader
from tasks.data.mnist_mini import MnistMini
from tasks.data.partitions import Partition
from tasks.data.partitions.class_ranges import ClassRanges
from tasks.data.partitions.iid import Iid
from tasks.data.partitions.stratified import Stratified
from tasks.measuring.evaluate import Evaluate
from tasks.models import Architecture
from tasks.models.conv import Conv2, Conv4, Conv6
from tasks.models.initialise import Initialiser, initialise
from tasks.models.lenet import LeNet300100
from tasks.models.mobilenet import MobileNetV2
from tasks.models.prunable import prunable
from tasks.models.resnet import ResNet18
from tasks.models.resnet_cifar import ResNet20
from tasks.models.vgg import VGG16
from tasks.models.vit import ViT
from tasks.models.weights import weights_to_bytes
from tasks.models.wide_resnet import WideResNet
from tasks.objectives import Objective
from tasks.objectives.pgd import PGD
from tasks.objectives.standard import Standard
from tasks.objectives.trades import TRADES
from tasks.optimizers import Optimizer
from tasks.optimizers.adam import Adam
from tasks.optimizers.adamw import AdamW
from tasks.optimizers.sgd import SGD
from tasks.pruning import Saliency
from tasks.pruning.magnitude import Magnitude
from tasks.pruning.mask import Mask
from tasks.pruning.prune import Prune
from tasks.pruning.random import Random
from tasks.pruning.shuffle import ShuffleMask
from tasks.schedules import Schedule
from tasks.schedules.constant import Constant
from tasks.schedules.cosine import Cosine
from tasks.schedules.one_cycle import OneCycle
from tasks.schedules.step import Step
from tasks.seeds import generator, seed_of
from tasks.task import Alone
from tasks.training.train import Train
from tests.tasks.training_toys import Finished, Tiny, toy, trained

RECORDED: dict[type[Component], int] = {Evaluate: 2, PGDAttack: 2}
"""The version that a component's golden results were recorded at, where it is not 1."""

SMALL = Signature(1, 4, 4, 10, (0.25,), (0.5,))
COLOUR = Signature(3, 32, 32, 10, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def unchanged(found: Any, golden: Any, *owners: type[Component]) -> None:
    """Fails if a result is not the recorded one, or was recorded for another version of one of those it comes from."""
    for owner in owners:
        if owner.version != RECORDED.get(owner, 1):
            pytest.fail(
                f"{_name(owner)} now has version {owner.version}: record that in RECORDED, and what it computes"
            )
    if found != golden:
        named = " or ".join(_name(owner) for owner in owners)
        pytest.fail(f"raise `version` of {named}, or restore the behaviour: found {found!r}, golden is {golden!r}")


def near(golden: Any, rel: float = 1e-3) -> Any:
    return pytest.approx(golden, rel=rel)


def digest(*parts: torch.Tensor | bytes) -> str:
    """Sixteen characters of a SHA-256: enough to tell a change."""
    content = hashlib.sha256()
    for part in parts:
        content.update(part if isinstance(part, bytes) else part.contiguous().numpy().tobytes())
    return content.hexdigest()[:16]


def _name(owner: type[Component]) -> str:
    return f"{owner.__module__.removeprefix('tasks.')}.{owner.__name__}"


@pytest.fixture(autouse=True, scope="module")
def one_thread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HEDGEROW_CACHE", str(tmp_path_factory.mktemp("prepared")))
        yield
    torch.set_num_threads(threads)


def test_seeds_are_as_recorded() -> None:
    unchanged(seed_of(3, "order", 1), 5970557047402141468, Train, Evaluate)


@pytest.mark.parametrize(
    ("initialiser", "golden"),
    [
        ("default", [-0.0958545, 607.752, -0.0504091, 869.137, -0.0426126, 48.9563]),
        ("kaiming-normal", [0.419276, 1361.2, 0.0764796, 1949.57, -0.0513648, 113.729]),
        ("xavier-normal", [0.0943445, 306.295, 0.0662333, 1688.38, -0.0489744, 108.436]),
    ],
)
def test_initial_weights_are_as_recorded(initialiser: Initialiser, golden: Any) -> None:
    kernels = prunable(initialise(LeNet300100(), SMALL, 3, initialiser))
    found = [value for kernel in kernels.values() for value in (kernel[0, 0].item(), kernel.abs().sum().item())]
    unchanged(found, near(golden, 1e-5), Train, LeNet300100)


@pytest.mark.parametrize(
    ("architecture", "data", "parameters", "golden"),
    [
        (LeNet300100(), SMALL, 36210, 5.82797),
        (Conv2(), SMALL, 171722, 2.40067),
        (Conv4(), SMALL, 360394, 2.40967),
        (Conv6(), COLOUR, 2262602, 3.60618),
        (ResNet20(width=4), COLOUR, 17326, 159.178),
        (WideResNet(depth=10, widen_factor=1), COLOUR, 77850, 14.3511),
        (ViT(dim=24, depth=2), COLOUR, 17506, 40.8501),
        (MobileNetV2(), COLOUR, 2236682, 0.823098),
        (VGG16(), COLOUR, 14728266, 2.59684),
        (ResNet18(), COLOUR, 11173962, 28.2478),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_a_fresh_network_answers_as_recorded(
    architecture: Architecture, data: Signature, parameters: int, golden: float
) -> None:
    model = initialise(architecture, data, 3)
    images = torch.rand(8, data.channels, data.height, data.width, generator=generator("images"))
    with torch.no_grad():
        model(images)  # moves the running statistics
        logits = model.eval()(images)
    unchanged(sum(parameter.numel() for parameter in model.parameters()), parameters, type(architecture))
    unchanged(logits.abs().sum().item(), near(golden), type(architecture))


@pytest.mark.parametrize(
    ("augmentation", "golden"),
    [
        (Unchanged(), "88e5663ada9051b0"),
        (CropFlip(padding=2), "93d82501e6031a84"),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_batches_come_in_the_recorded_order(augmentation: Augmentation, golden: str) -> None:
    images = torch.arange(100 * 36).view(100, 1, 6, 6).remainder(251).to(torch.uint8)
    loader = Loader(Examples(images, torch.arange(100)), batch_size=32, augmentation=augmentation)
    batches = [batch for epoch in (0, 1) for batch in loader.epoch(7, epoch)]
    found = digest(
        *((255 * images).round().to(torch.uint8) for images, _, _ in batches), *(labels for _, labels, _ in batches)
    )
    unchanged(found, golden, Train, type(augmentation))


@pytest.mark.parametrize(
    ("partition", "golden"),
    [
        (None, "c99cdacd0682415c"),
        (Iid(parts=3, index=1), "63dbb247a8ccda9c"),
        (Stratified(parts=3, index=1), "3e0a4ad6b5ba8752"),
        (ClassRanges(parts=3, index=1), "1e2c10bbfc5c7d63"),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_splits_and_noisy_labels_are_as_recorded(partition: Partition | None, golden: str) -> None:
    data = MnistMini(validation=300, subset=700, partition=partition, label_noise=0.2, split_seed=5)
    parts = [data.load("train"), data.load("validation"), data.load("test")]
    found = digest(*(tensor for part in parts for tensor in (part.images, part.labels)))
    unchanged(found, golden, MnistMini, *([type(partition)] if partition else []))


def integers(mask: bytes | None = None) -> Finished:
    """A finished training of a network whose kernels are small integers: many of them equal in magnitude."""
    model = initialise(LeNet300100(), SMALL, 0)
    for number, parameter in enumerate(model.parameters()):
        values = (torch.arange(parameter.numel()) * 37 + number) % 23 - 11
        parameter.data = values.view(parameter.shape).float()
    if mask is None:
        return Finished({}, {"weights.safetensors": weights_to_bytes(model)})
    Mask.from_bytes(mask).apply_(model)
    return Finished({}, {"weights.safetensors": weights_to_bytes(model), "mask.safetensors": mask})


def test_the_weights_file_has_the_recorded_bytes() -> None:
    unchanged(digest(integers().read("weights.safetensors")), "220727ddfedc56d8", Train)


@pytest.mark.parametrize(
    ("saliency", "fields", "golden"),
    [
        (Magnitude(), {}, "983dbd40fd3af492"),
        (Magnitude(), {"scope": "layerwise"}, "144c5ae02f73a44c"),
        (Magnitude(), {"output_layer": "half"}, "84e6329416c05a22"),
        (Magnitude(), {"output_layer": "exclude"}, "863b50d640113977"),
        (Random(), {}, "a1a089c894ddb6e4"),
    ],
    ids=["magnitude", "layerwise", "half", "exclude", "random"],
)
def test_two_rounds_of_pruning_keep_the_recorded_weights(
    saliency: Saliency, fields: dict[str, Any], golden: str
) -> None:
    prune = Prune(saliency=saliency, fraction=0.3, **fields)
    first = prune.run(Alone(), trained=integers()).files["mask.safetensors"]
    once = integers(first)
    second = prune.run(Alone(), trained=once, mask=once).files["mask.safetensors"]
    unchanged(digest(first, second), golden, Prune, type(saliency))


def test_a_shuffled_mask_is_as_recorded() -> None:
    mask = Prune(fraction=0.3).run(Alone(), trained=integers())
    shuffled = ShuffleMask(seed=4).run(Alone(), mask=Finished(mask.metrics, mask.files))
    unchanged(
        [digest(shuffled.files["mask.safetensors"]), shuffled.metrics["digest"][:16]],
        ["6220348e005838b2", "5f738b8ca643a4f3"],
        ShuffleMask,
    )


@pytest.mark.parametrize(
    "objective",
    [
        Standard(),
        Standard(label_smoothing=0.2),
        PGD(epsilon=0.3, steps=3),
        PGD(epsilon=2, steps=3, norm="l2"),
        TRADES(epsilon=0.3, steps=3),
    ],
    ids=["standard", "smoothed", "pgd-linf", "pgd-l2", "trades"],
)
@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(learning_rate=0.2, momentum=0.9, weight_decay=0.1, nesterov=True),
        Adam(learning_rate=0.03, weight_decay=0.1),
        AdamW(learning_rate=0.03, weight_decay=3),
    ],
    ids=["sgd", "adam", "adamw"],
)
def test_three_steps_of_training_end_as_recorded(
    objective: Objective, optimizer: Optimizer, request: pytest.FixtureRequest
) -> None:
    found = three_steps(objective=objective, optimizer=optimizer)
    golden = LOSSES[request.node.callspec.id]
    unchanged(found, near(golden), Train, type(objective), type(optimizer))


LOSSES = {
    "sgd-standard": [1.39652, 1.31264],
    "sgd-smoothed": [1.40026, 1.33148],
    "sgd-pgd-linf": [1.5288, 1.3831],
    "sgd-pgd-l2": [1.55256, 1.38502],
    "sgd-trades": [1.46762, 1.37286],
    "adam-standard": [1.37629, 1.30066],
    "adam-smoothed": [1.38253, 1.31779],
    "adam-pgd-linf": [1.54116, 1.3882],
    "adam-pgd-l2": [1.55262, 1.39],
    "adam-trades": [1.46056, 1.36789],
    "adamw-standard": [1.36813, 1.21547],
    "adamw-smoothed": [1.37232, 1.21886],
    "adamw-pgd-linf": [1.52307, 1.38581],
    "adamw-pgd-l2": [1.53731, 1.38929],
    "adamw-trades": [1.46072, 1.37101],
}
"""Training loss over three steps, and validation loss after them."""


def three_steps(**fields: Any) -> list[float]:
    step = trained(toy(epochs=1, batch_size=15, **fields))
    (entry,) = [json.loads(line) for line in step.read("history.jsonl").splitlines()]
    return [entry["train_loss"], entry["validation_loss"]]


@pytest.mark.parametrize(
    ("schedule", "golden"),
    [
        (Constant(warmup=0.4), [1.3996, 1.30052]),
        (Cosine(), [1.39004, 1.3197]),
        (OneCycle(), [1.39317, 1.34516]),
        (Step(milestones=(0.5,)), [1.3871, 1.31359]),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_three_steps_under_a_schedule_end_as_recorded(schedule: Schedule, golden: list[float]) -> None:
    unchanged(three_steps(schedule=schedule, optimizer=SGD(learning_rate=0.5)), near(golden), Train, type(schedule))


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="dropout draws from another stream without MKL")
def test_three_steps_with_dropout_end_as_recorded() -> None:
    unchanged(three_steps(architecture=Tiny(dropout=0.5)), near([1.4191, 1.39302]), Train)
