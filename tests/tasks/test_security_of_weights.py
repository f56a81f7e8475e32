"""A pickle in the place of weights, masks or a saved state is refused in one line, and what it says is not done."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.measuring.evaluate import Evaluate
from tasks.measuring.outcomes import Outcomes
from tasks.models.weights import load_tensors, load_weights
from tasks.pruning.mask import Mask
from tasks.pruning.prune import Prune
from tasks.task import Task
from tasks.training.imported import ImportWeights
from tests.tasks.training_toys import Blobs, Finished, Tiny, Watch, half_mask, toy, trained


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.target),))


def bare(target: Path) -> bytes:
    return pickle.dumps(Bomb(target), protocol=2)


def zipped(target: Path, content: Any = None, **how: Any) -> bytes:
    made = io.BytesIO()
    torch.save(content if content is not None else {"model": Bomb(target)}, made, **how)
    return made.getvalue()


def legacy(target: Path) -> bytes:
    return zipped(target, _use_new_zipfile_serialization=False)


def among_tensors(target: Path) -> bytes:
    return zipped(target, {"body.0.weight": torch.zeros(3, 1, 3, 3), "extra": Bomb(target)})


def behind_a_header(target: Path) -> bytes:
    """Looks like safetensors at its beginning."""
    return (2).to_bytes(8, "little") + b"{}" + bare(target)


FORMS: list[Callable[[Path], bytes]] = [bare, zipped, legacy, among_tensors, behind_a_header]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The folder that must not come into being."""
    return tmp_path / "executed"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEDGEROW_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("form", [bare, zipped, legacy, among_tensors])
def test_the_bombs_of_these_tests_do_go_off(form: Callable[[Path], bytes], target: Path) -> None:
    content = form(target)
    if form is bare:
        pickle.loads(content)
    else:
        torch.load(io.BytesIO(content), weights_only=False)
    assert target.exists()


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_of_one_s_own_is_not_unpickled(
    form: Callable[[Path], bytes], target: Path, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(form(target))
    task = ImportWeights(data=Blobs(), architecture=Tiny(), path=path)
    for act in (task.check, lambda: task.run(Watch())):
        with pytest.raises(ValueError, match=r"^\S+weights\.pt: ") as refusal:
            act()
        assert "\n" not in str(refusal.value)
    assert not target.exists()


def test_a_pickled_object_is_named(target: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(zipped(target))
    with pytest.raises(ValueError, match=r"holds a pickled posix.mkdir, and only tensors are unpickled"):
        ImportWeights(data=Blobs(), architecture=Tiny(), path=path).run(Watch())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("read", [load_tensors, load_weights, Mask.from_bytes, Outcomes.from_bytes])
def test_no_reader_of_stored_tensors_unpickles(
    read: Callable[[bytes], Any], form: Callable[[Path], bytes], target: Path
) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011 - which one says nothing about safety
        read(form(target))
    assert not target.exists()


def replaced(step: Finished, name: str, content: bytes) -> Finished:
    """A stored step one of whose files is another's, its digest too."""
    return Finished(step.metrics, {**step.files, name: content})


@pytest.mark.parametrize("form", FORMS)
def test_no_task_unpickles_the_files_of_the_steps_that_feed_it(form: Callable[[Path], bytes], target: Path) -> None:
    base = trained(toy(stop_at=2))
    bad = replaced(base, "weights.safetensors", form(target))
    cases: list[tuple[Task, dict[str, Any]]] = [
        (toy(stop_at=3), {"start": bad}),
        (toy(stop_at=3), {"start": base, "mask": replaced(half_mask(base), "mask.safetensors", form(target))}),
        (Prune(fraction=0.5), {"trained": bad}),
        (Evaluate(data=Blobs(), architecture=Tiny(), weights="last"), {"trained": bad}),
    ]
    for task, inputs in cases:
        with pytest.raises(ValueError, match="safetensors") as refusal:
            task.run(Watch(), **inputs)
        assert "\n" not in str(refusal.value)
    assert not target.exists()


@pytest.mark.parametrize("form", FORMS)
def test_a_saved_state_is_not_unpickled(form: Callable[[Path], bytes], target: Path) -> None:
    with pytest.raises(ValueError, match="is no training's state, and was not unpickled") as refusal:
        toy().run(Watch(state=form(target)))
    assert "\n" not in str(refusal.value)
    base = trained(toy(stop_at=2))
    with pytest.raises(Exception):  # noqa: B017, PT011
        Evaluate(data=Blobs(), architecture=Tiny(), weights="last").run(Watch(state=form(target)), trained=base)
    assert not target.exists()
