"""The task that takes in a checkpoint trained elsewhere."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from tasks.component import Placement, kind_of
from tasks.data import Dataset
from tasks.data.prepared import remembered
from tasks.models import Architecture
from tasks.models.torchvision import AUXILIARY
from tasks.models.weights import load_tensors, weights_to_bytes
from tasks.task import Context, Result, Stored, Task

NESTINGS = ("state_dict", "model", "model_state_dict", "net")
"""Where training scripts put the state dict among other things."""
WRAPPERS = ("module.", "_orig_mod.")
"""What `DataParallel` and `torch.compile` put before every name."""


class ImportWeights(Task):
    """A checkpoint of one's own as a finished training: a state dict in a `.pt`, `.pth` or `.safetensors` file.

    The state dict may lie under `state_dict`, `model`, `model_state_dict` or `net`. Its names are those of the
    network's layers, with or without `module.` (`DataParallel`) or `body.` before them. Normalisation happens inside
    the network: by the `mean` and `std` of the architecture or else of the data, unless the file has `normalise.mean`
    and `normalise.std`. Pickled objects other than tensors and plain containers are refused, never loaded.
    """

    kind: Literal["import-weights"] = "import-weights"
    data: Dataset
    """What it was trained on: shape, classes and, unless the architecture has its own, mean and deviation."""
    architecture: Architecture
    """The network that the weights belong to."""
    path: Annotated[Path, Placement()]
    """The file; what counts is its content. Workers on other machines must find it at the same place."""
    gpus: Annotated[float, Placement()] = Field(default=0, ge=0)
    """None are needed."""

    def identity(self) -> dict[str, Any]:
        """The configuration together with the content of the file."""
        return {**super().identity(), "fingerprint": self.fingerprint()}

    def fingerprint(self) -> str:
        """SHA-256 of the file; its bytes are read again only if place, size or time of change is another than before.

        Raises:
            ValueError: there is no such file.
        """
        try:
            state = os.stat(self._file())
            place = f"{self._file().resolve()}\0{state.st_size}\0{state.st_mtime_ns}"
            named = hashlib.sha256(place.encode()).hexdigest()
            return remembered(named, lambda: hashlib.sha256(self._content()).hexdigest())
        except OSError as problem:
            raise ValueError(f"{self.path}: cannot be read: {problem.strerror}") from None

    def check(self) -> None:
        """Compares names and shapes with those of the network, without its weights.

        Raises:
            ValueError: the file is missing, is no checkpoint, or does not fit; says which entry first.
        """
        with torch.device("meta"):
            network = self.architecture.build(self.data.signature())
        self._fitting(self._content(), network)

    def run(self, context: Context, **inputs: Stored) -> Result:
        """Reads the file; takes no inputs.

        Returns:
            Metrics: `parameters`, the `sha256` of the file, the `digest` of the weights, and what a training that
            starts from here looks for: `step` 0, `density` 1 (no mask is known, and none is inferred from zeros).
            Files: `weights.safetensors` and `best.safetensors`, which are the same.

        Raises:
            ValueError: the file is missing, is no checkpoint, or does not fit.
        """
        if inputs:
            raise ValueError(f"import-weights has no input '{min(inputs)}'; it has none")
        content = self._content()
        with torch.random.fork_rng(devices=[]):  # building draws initial weights, which are overwritten at once
            network = self.architecture.build(self.data.signature())
        network.load_state_dict(self._fitting(content, network))
        for name, tensor in network.state_dict().items():
            if not tensor.isfinite().all():
                raise ValueError(f"{self.path}: '{name}' has NaN or infinite values")
        weights = weights_to_bytes(network)
        metrics = {
            "step": 0,
            "density": 1.0,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "sha256": hashlib.sha256(content).hexdigest(),
            "digest": hashlib.sha256(weights).hexdigest(),
        }
        return Result(metrics, {"weights.safetensors": weights, "best.safetensors": weights})

    def _file(self) -> Path:
        return self.path.expanduser()

    def _content(self) -> bytes:
        try:
            return self._file().read_bytes()
        except OSError as problem:
            raise ValueError(f"{self.path}: cannot be read: {problem.strerror}") from None

    def _fitting(self, content: bytes, network: nn.Module) -> dict[str, torch.Tensor]:
        """The whole state of the network by the file.

        Raises:
            ValueError: it is no checkpoint, or an entry is missing, left over or of another shape.
        """
        own = network.state_dict()
        try:
            given = _named_as_here(_state_dict(content))
        except ValueError as problem:
            raise ValueError(f"{self.path}: {problem}") from None
        optional = {name for name in own if name.startswith("normalise.") or name.endswith(".num_batches_tracked")}
        found = {name: given.get(name, own[name] if name in optional else None) for name in own | given}
        wrong = [
            f"'{name}' is {_shape(found[name])} in the file and {_shape(own.get(name))} in the network"
            for name in found
            if _shape(found[name]) != _shape(own.get(name))
        ]
        if wrong:
            what = f"{kind_of(type(self.architecture))} {getattr(self.architecture, 'name', '')}".strip()
            raise ValueError(
                f"{self.path}: does not fit {what}: {wrong[0]}; {len(wrong)} of {len(found)} entries differ"
            )
        return {name: tensor for name, tensor in found.items() if tensor is not None}


def _state_dict(content: bytes) -> Mapping[str, torch.Tensor]:
    """The tensors of a checkpoint by their names in it.

    Raises:
        ValueError: it is none, or would have to be unpickled.
    """
    loaded = _loaded(content)
    for nested in (loaded, *(loaded[name] for name in NESTINGS if isinstance(loaded, Mapping) and name in loaded)):
        if isinstance(nested, Mapping) and nested and all(isinstance(item, torch.Tensor) for item in nested.values()):
            return {str(name): tensor for name, tensor in nested.items()}
    found = f"a mapping of {', '.join(map(str, loaded))}" if isinstance(loaded, Mapping) else type(loaded).__name__
    raise ValueError(f"no state dict, neither by itself nor under {', '.join(NESTINGS)}; found {found}")


def _loaded(content: bytes) -> Any:
    if _is_safetensors(content):
        return load_tensors(content)
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as problem:  # bytes that are no checkpoint make it raise nearly anything
        foreign = re.search(r"GLOBAL ([\w.]+)", str(problem)) if isinstance(problem, pickle.UnpicklingError) else None
        if foreign is None:
            raise ValueError("not a checkpoint: neither safetensors nor what torch.save writes") from None
        raise ValueError(
            f"holds a pickled {foreign[1]}, and only tensors are unpickled: save `model.state_dict()` by itself"
        ) from None


def _is_safetensors(content: bytes) -> bool:
    """Whether the bytes begin with the length of a JSON header and its brace."""
    return content[8:9] == b"{" and int.from_bytes(content[:8], "little") <= len(content)


def _named_as_here(given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors under the names of our networks: no wrappers, and below `body.`."""
    named = dict(given)
    while wrapper := next((each for each in WRAPPERS if all(name.startswith(each) for name in named)), None):
        named = {name.removeprefix(wrapper): tensor for name, tensor in named.items()}
    if not any(name.startswith(("body.", "normalise.")) for name in named):
        named = {f"body.{name}": tensor for name, tensor in named.items() if not name.startswith(AUXILIARY)}
    return named


def _shape(tensor: torch.Tensor | None) -> str:
    return "missing" if tensor is None else str(tuple(tensor.shape))
