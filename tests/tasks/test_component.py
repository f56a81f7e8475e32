"""Components: families, mistakes, identities."""

from __future__ import annotations

import pickle
import random
from importlib.metadata import EntryPoint
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError

from tasks import component
from tasks.attacks import Attack
from tasks.attacks.pgd import PGD
from tasks.component import Component, Placement, json_schema, kind_of, members
from tasks.data import Dataset
from tasks.data.mnist_mini import MnistMini
from tasks.measuring.evaluate import Evaluate
from tasks.objectives import Objective
from tasks.training.train import Train


class Shape(Component):
    """A family of the tests."""


class Square(Shape):
    """A square."""

    kind: Literal["square"] = "square"
    side: float = Field(default=1, gt=0)
    colour: Annotated[str, Placement()] = "red"


class Pile(Shape):
    """Shapes on each other."""

    kind: Literal["pile"] = "pile"
    parts: tuple[Shape, ...] = ()
    height: int


class Table(Component):
    """Something with a shape, no member of a family."""

    kind: Literal["table"] = "table"
    top: Shape = Square()
    legs: int = 4


def mistakes(family: Any, given: Any) -> dict[str, str]:
    with pytest.raises(ValidationError) as refused:
        family.model_validate(given)
    return {".".join(map(str, error["loc"])): error["msg"] for error in refused.value.errors()}


def test_a_field_of_a_family_takes_a_name_a_mapping_or_a_member() -> None:
    for given in ("square", {"kind": "square"}, Square()):
        assert Table(top=given).top == Square()  # type: ignore[arg-type]
    assert Table.model_validate({"top": {"kind": "pile", "height": 2}}).top == Pile(height=2)


def test_families_nest_in_themselves() -> None:
    table = Table.model_validate(
        {"top": {"kind": "pile", "height": 1, "parts": ["square", {"kind": "square", "side": 2}]}}
    )
    assert table.top == Pile(height=1, parts=(Square(), Square(side=2)))
    assert Table.model_validate(table.model_dump(mode="json")) == table


@pytest.mark.parametrize(
    ("given", "path", "message"),
    [
        ({"top": "squar"}, "top", "no shape is called 'squar'; did you mean 'square'? allowed: pile, square"),
        ({"top": {"side": 2}}, "top", "`kind` is missing; allowed: pile, square"),
        ({"top": 3}, "top", "a shape is a name or a mapping with a `kind`"),
        ({"legz": 3}, "legz", "unknown field; did you mean 'legs'?"),
        ({"top": {"kind": "square", "sid": 2}}, "top.sid", "unknown field; did you mean 'side'?"),
        ({"top": {"kind": "square", "side": -1}}, "top.side", "greater than 0"),
        ({"top": {"kind": "square", "side": float("nan")}}, "top.side", "finite"),
        (
            {"top": {"kind": "pile", "height": 1, "parts": ["square", {"kind": "square", "side": "x"}]}},
            "top.parts.1.side",
            "valid number",
        ),
        ({"top": {"kind": "pile"}}, "top.height", "required"),
    ],
)
def test_a_mistake_is_found_at_its_path(given: Any, path: str, message: str) -> None:
    found = mistakes(Table, given)
    assert list(found) == [path]
    assert message in found[path]


def test_several_mistakes_are_all_found() -> None:
    assert mistakes(Table, {"legs": "x", "top": {"kind": "square", "side": 0}}).keys() == {"legs", "top.side"}


def test_a_component_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Square().side = 2  # type: ignore[misc]


def test_identity_leaves_out_defaults_however_they_were_given() -> None:
    assert Square().identity() == Square(side=1).identity() == {"kind": "square"}
    assert Square(side=2).identity() == {"kind": "square", "side": 2}
    assert Table(top=Square(side=1)).identity() == {"kind": "table"}
    assert Table(top=Square(side=3)).identity() == {"kind": "table", "top": {"kind": "square", "side": 3}}


def test_identity_names_required_fields_whatever_they_hold() -> None:
    assert Pile(height=0).identity() == {"kind": "pile", "height": 0}


def test_placement_is_no_part_of_the_identity() -> None:
    assert Square(colour="blue").identity() == Square().identity()
    assert Table(top=Square(colour="blue")).identity()["top"] == {"kind": "square"}
    assert Evaluate(data=MnistMini(), architecture="lenet-300-100", gpus=1).identity() == (  # type: ignore[arg-type]
        Evaluate(data=MnistMini(), architecture="lenet-300-100").identity()  # type: ignore[arg-type]
    )


def test_threads_are_part_of_the_identity() -> None:
    task = Evaluate(data=MnistMini(), architecture="lenet-300-100")  # type: ignore[arg-type]
    assert task.model_copy(update={"threads": 2}).identity() != task.identity()


def test_a_data_set_stays_in_the_identity_even_as_a_default() -> None:
    class Study(Component):
        kind: Literal["study"] = "study"
        data: Dataset = MnistMini()

    named = Study().identity()
    assert named["data"]["fingerprint"] == MnistMini().fingerprint()


def test_a_default_that_was_changed_since_its_first_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise its version could rise, and the steps that left it out would keep their keys and other results."""
    monkeypatch.setattr(Square, "version", 2)
    assert Table().identity() == {"kind": "table", "top": {"kind": "square", "version": 2}}


def test_a_raised_version_is_another_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Table(top=Square(side=2)).identity()
    monkeypatch.setattr(Square, "version", 2)
    after = Table(top=Square(side=2)).identity()
    assert after == {"kind": "table", "top": {"kind": "square", "version": 2, "side": 2}} != before


def test_a_new_field_with_a_default_leaves_the_identity_as_it_was() -> None:
    class Before(Component):
        kind: Literal["grown"] = "grown"
        size: int

    class After(Before):
        edge: float = 0.5

    assert After(size=3).identity() == Before(size=3).identity()
    assert After(size=3, edge=1).identity() != Before(size=3).identity()


def test_what_has_no_canonical_form_is_refused() -> None:
    class Odd(Component):
        kind: Literal["odd"] = "odd"
        thing: Any = None

    with pytest.raises(TypeError, match="has no canonical form"):
        Odd(thing={1, 2}).identity()


def test_a_component_survives_pickling() -> None:
    given = {"data": "mnist-mini", "architecture": "conv-2", "optimizer": "adam", "schedule": "cosine", "epochs": 2}
    task = Train.model_validate(given)
    again = pickle.loads(pickle.dumps(task))
    assert again == task
    assert again.identity() == task.identity()


def test_identity_does_not_touch_the_global_generator() -> None:
    state = random.getstate()
    Table().identity()
    assert random.getstate() == state


def test_the_members_of_a_family_are_the_modules_beside_it() -> None:
    assert members(Objective).keys() >= {"standard", "pgd", "trades"}
    assert members(Attack)["pgd"] is PGD
    assert list(members(Attack)) == sorted(members(Attack))


def test_a_member_may_come_from_another_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "elsewhere_shapes.py").write_text(
        "from typing import Literal\n"
        "from tests.tasks.test_component import Shape\n"
        "class Circle(Shape):\n"
        "    kind: Literal['circle'] = 'circle'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = EntryPoint("circle", "elsewhere_shapes:Circle", component.ENTRY_POINTS)
    monkeypatch.setattr(component, "entry_points", lambda group: [entry] if group == component.ENTRY_POINTS else [])
    members.cache_clear()
    try:
        assert kind_of(type(Table(top="circle").top)) == "circle"  # type: ignore[arg-type]
    finally:
        members.cache_clear()


def test_two_members_of_one_kind_are_refused() -> None:
    class Fruit(Component):
        """A family."""

    class Apple(Fruit):
        kind: Literal["apple"] = "apple"

    class OtherApple(Fruit):
        kind: Literal["apple"] = "apple"

    with pytest.raises(TypeError, match="two components of family Fruit are called 'apple'"):
        members(Fruit)


def test_the_schema_of_families_that_hold_each_other_is_finite_and_complete() -> None:
    schema = json_schema(Table)
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(schema)
    nested = {"kind": "pile", "height": 1, "parts": ["square", {"kind": "pile", "height": 2}]}
    assert validator.is_valid({"top": nested})
    assert not validator.is_valid({"top": {**nested, "parts": ["squar"]}})
    assert not validator.is_valid({"top": {"height": 1}})
