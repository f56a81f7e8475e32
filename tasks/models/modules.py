"""The modules that a recipe names."""

from __future__ import annotations

from difflib import get_close_matches

from torch import nn


def modules_called(names: tuple[str, ...], network: nn.Module, field: str) -> dict[str, nn.Module]:
    """The modules of a network by their paths, each once.

    Args:
        names: paths as `named_modules` lists them, or their last parts.
        network: any.
        field: what holds the names, for the message.

    Raises:
        ValueError: there is none of some name.
    """
    modules = {path: module for path, module in network.named_modules() if path}
    found: dict[str, nn.Module] = {}
    for name in names:
        here = {path: module for path, module in modules.items() if path == name or path.endswith(f".{name}")}
        if not here:
            close = get_close_matches(name, [*modules, *(path.rpartition(".")[2] for path in modules)], n=1)
            hint = f"did you mean '{close[0]}'? " if close else ""
            raise ValueError(f"{field}: the network has no module '{name}'; {hint}it has {', '.join(modules)}")
        found |= here
    return found
