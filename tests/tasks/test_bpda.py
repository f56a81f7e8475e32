"""Gradients through what has none: which attacks and networks that is for."""

from __future__ import annotations

import pytest
import torch

from tasks.attacks.autoattack import AutoAttack
from tasks.attacks.bpda import BPDA
from tasks.attacks.pgd import PGD
from tasks.attacks.random_noise import RandomNoise
from tasks.attacks.square import Square
from tasks.data.mnist_mini import MnistMini
from tasks.models.small_cnn import SmallCNN


def test_modules_are_looked_up_in_a_network_without_weights() -> None:
    with torch.device("meta"):
        network = SmallCNN().build(MnistMini().signature())
    for known in ("body.conv1_relu", "conv1_relu", "normalise"):
        BPDA(attack=PGD(), through=(known,)).check_model(network)
    with pytest.raises(ValueError, match=r"the network has no module 'conv1_rel'; did you mean 'conv1_relu'\? it has "):
        BPDA(attack=PGD(), through=("normalise", "conv1_rel")).check_model(network)
    nested = BPDA(attack=BPDA(attack=PGD(), through=("clamp",)), through=("normalise",))
    with pytest.raises(ValueError, match="the network has no module 'clamp'"):
        nested.check_model(network)


def test_an_attack_that_follows_no_gradients_is_refused() -> None:
    for attack in (Square(), RandomNoise()):
        with pytest.raises(ValueError, match=f"{attack.kind} follows no gradients of the network: give it without"):
            BPDA(attack=attack, through=("clamp",))


def test_the_blind_part_of_a_cascade_stays_itself_so_that_its_successes_count_as_a_sign_of_masking() -> None:
    parts = BPDA(attack=AutoAttack(), through=("clamp",)).parts()
    assert [part.label() for part in parts] == ["bpda-apgd-ce", "bpda-apgd-t", "bpda-fab-t", "square"]
    assert [part.gradients for part in parts] == [True, True, True, False]
