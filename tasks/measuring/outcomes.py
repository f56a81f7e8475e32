"""What became of every example under attack, and the figures that follow from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from safetensors.torch import load, save

from tasks.attacks.ball import Norm
from tasks.measuring.intervals import accuracy_of
from tasks.measuring.predictions import Predictions

FILE = "outcomes.safetensors"


@dataclass(frozen=True)
class Threat:
    """What the examples were attacked with."""

    norm: Norm
    epsilons: tuple[float, ...]
    """Radii in input units, rising."""
    attacks: tuple[str, ...]
    """Their names, in the order in which they tried."""


@dataclass(frozen=True)
class Outcomes:
    """The outcome of each of N examples: all tensors are (N,), on the CPU."""

    threat: Threat
    indices: torch.Tensor
    """int64, places in the split."""
    labels: torch.Tensor
    """int64, true classes."""
    predictions: torch.Tensor
    """int64, predicted classes of the images as they are."""
    confidences: torch.Tensor
    """float32, probabilities of these."""
    losses: torch.Tensor
    """float32, cross-entropies of the images as they are, in nats."""
    broken_at: torch.Tensor
    """float32, the smallest epsilon at which an attack succeeded; infinite if none did, 0 if wrong without one."""
    broken_by: torch.Tensor
    """int64, which attack that was, its place in the threat's list; -1 if none."""
    distances: torch.Tensor
    """float32, the smallest change found that breaks the example, in the threat's norm; infinite or 0 as above."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def correct(self) -> torch.Tensor:
        """(N,) bool, right without attack."""
        return self.predictions == self.labels

    def standing(self, epsilon: float) -> torch.Tensor:
        """(N,) bool, right without attack and under every attack up to this epsilon of the threat."""
        return self.broken_at > torch.tensor(epsilon, dtype=torch.float32)

    def summary(self) -> dict[str, Any]:
        """The metrics: clean figures, and for each epsilon robust accuracy, its 95 % interval and who broke what."""
        clean = Predictions(self.predictions, self.confidences, self.losses, self.correct).summary()
        return {
            "examples": len(self),
            "correct": int(self.correct.sum()),
            "clean": {**clean, **accuracy_of(self.correct)},
            "robust": [self._at(epsilon) for epsilon in self.threat.epsilons],
        }

    def _at(self, epsilon: float) -> dict[str, Any]:
        newly = self.broken_at == torch.tensor(epsilon, dtype=torch.float32)
        return {
            "epsilon": epsilon,
            **accuracy_of(self.standing(epsilon)),
            "broken_by": {
                name: int((newly & (self.broken_by == turn)).sum()) for turn, name in enumerate(self.threat.attacks)
            },
        }

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        described = {"norm": self.threat.norm, "epsilons": self.threat.epsilons, "attacks": self.threat.attacks}
        return save(self._tensors(), metadata={"threat": json.dumps(described)})

    @classmethod
    def from_bytes(cls, content: bytes) -> Outcomes:
        """Reads what `to_bytes` wrote."""
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        described = json.loads(header["__metadata__"]["threat"])
        threat = Threat(described["norm"], tuple(described["epsilons"]), tuple(described["attacks"]))
        return cls(threat, **load(content))

    @classmethod
    def joined(cls, parts: Sequence[Outcomes]) -> Outcomes:
        """Those of several stretches of examples as one.

        Raises:
            ValueError: they come from different attacks or epsilons, or share an example.
        """
        threats = {part.threat for part in parts}
        if len(threats) != 1:
            raise ValueError(f"outcomes of {len(threats)} different threats cannot be joined")
        indices = torch.cat([part.indices for part in parts]).sort().values
        if len(twice := indices[1:][indices[1:] == indices[:-1]]):
            raise ValueError(f"example {int(twice[0])} is in more than one of the outcomes to join")
        tensors = [part._tensors() for part in parts]
        return cls(parts[0].threat, **{name: torch.cat([each[name] for each in tensors]) for name in tensors[0]})

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {field.name: getattr(self, field.name).contiguous() for field in fields(self) if field.name != "threat"}
