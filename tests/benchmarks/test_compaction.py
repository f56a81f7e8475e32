"""What taking pruned channels out of a network saves beside leaving them in as zeros. Run with `-n 0 -m benchmark -s`.

VGG-16 with half of the channels of every layer pruned classifies the same images with and without them, on one thread,
taking turns; medians of processor time are compared. The floor: 1.6 times as fast. A mask alone saves nothing.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator
from typing import Literal

import pytest
import torch
from torch import nn

from tasks.data import Dataset, Examples, Signature, Split
from tasks.device import settle
from tasks.models.compacted import Compacted
from tasks.models.initialise import initialise
from tasks.models.vgg import VGG16
from tasks.models.weights import restore, weights_to_bytes
from tasks.pruning.channels import PruneChannels
from tasks.pruning.compact import Compact
from tasks.pruning.mask import Mask
from tasks.seeds import generator
from tasks.task import Alone
from tests.tasks.training_toys import Finished

pytestmark = pytest.mark.benchmark

ROUNDS = 7
BATCH = 16


class Colours(Dataset):
    """Coloured noise in the shape of CIFAR-10: only its shape costs time."""

    kind: Literal["benchmark-colours"] = "benchmark-colours"

    def fingerprint(self) -> str:
        return "benchmark"

    def signature(self) -> Signature:
        return Signature(3, 32, 32, 10, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))

    def load(self, split: Split) -> Examples:
        images = torch.randint(0, 256, (BATCH, 3, 32, 32), generator=generator("images"))
        return Examples(images.to(torch.uint8), torch.arange(BATCH) % 10)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    settle(1)
    yield
    torch.set_num_threads(threads)


def seconds(network: nn.Module, images: torch.Tensor) -> float:
    began = time.process_time()
    with torch.no_grad():
        network(images)
    return time.process_time() - began


def test_half_the_channels_taken_out_save_what_a_mask_does_not() -> None:
    data, architecture = Colours(), VGG16()
    dense = initialise(architecture, data.signature(), 0).eval()
    content = weights_to_bytes(dense)
    trained = Finished({"step": 0, "density": 1.0}, {"weights.safetensors": content, "best.safetensors": content})
    pruned = PruneChannels(data=data, architecture=architecture, fraction=0.5).run(Alone(), trained=trained)
    mask = Finished(pruned.metrics, pruned.files)
    smaller = Compact(data=data, architecture=architecture).run(Alone(), trained=trained, mask=mask)
    masked = copy.deepcopy(dense)
    Mask.from_bytes(mask.read("mask.safetensors")).apply_(masked)
    compact = Compacted(base=architecture, widths=smaller.metrics["widths"]).build(data.signature()).eval()
    restore(compact, smaller.files["weights.safetensors"])
    images = data.load("test").images.float() / 255
    networks = {"dense": dense, "masked": masked, "compact": compact}
    for network in networks.values():
        seconds(network, images)
    times: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(ROUNDS):
        for name, network in networks.items():
            times[name].append(seconds(network, images))
    median = {name: statistics.median(found) for name, found in times.items()}
    gain = median["masked"] / median["compact"]
    shown = ", ".join(f"{name} {1000 * each / BATCH:.2f} ms" for name, each in median.items())
    parameters = f"{smaller.metrics['before']:,} parameters to {smaller.metrics['parameters']:,}"
    print(f"\nper image: {shown}; compact is {gain:.2f} times as fast as masked, {parameters}")
    assert gain >= 1.6
