"""The base of whatever has hyper-parameters: a component is its own configuration."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from itertools import pairwise
from typing import Any, ClassVar, Self, cast, get_args

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import models_json_schema
from pydantic_core import PydanticCustomError, ValidationError, core_schema

ENTRY_POINTS = "hedgerow.components"


class Placement:
    """Marks a field that says where or how fast, never what: it stays out of the identity."""


def kind_of(component: type[BaseModel]) -> str:
    """The name that recipes use for this component."""
    return str(component.model_fields["kind"].default)


def is_member(component: type[BaseModel]) -> bool:
    """Whether this class is one method, and not the family of several."""
    return "kind" in component.model_fields


class Component(BaseModel):
    """A frozen set of hyper-parameters with one verb.

    A subclass without a `kind` field is a *family* (`Objective`, `Attack`, ...): a field annotated with it accepts
    any member, named by its `kind`. Members are the modules beside the family and the entry points of other packages
    in the group `hedgerow.components`; nothing else registers them.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    version: ClassVar[int] = 1
    """Rises when the same fields give other results."""
    elidable: ClassVar[bool] = True
    """Whether a field that holds this component may stay out of the identity when it equals its default."""

    def identity(self) -> dict[str, Any]:
        """What this computes, as JSON: kind, version and the fields that differ from their defaults."""
        named: dict[str, Any] = {"kind": kind_of(type(self))}
        if self.version != 1:
            named["version"] = self.version
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            placed = any(isinstance(mark, Placement) for mark in field.metadata)
            if name == "kind" or placed:
                continue
            default = not field.is_required() and value == field.get_default(call_default_factory=True)
            if default and not (isinstance(value, Component) and value._named_by_default()):
                continue
            named[name] = _canonical(value)
        return named

    def _named_by_default(self) -> bool:
        """Whether a field names this component even where it is the default: its content or its version may change."""
        return not self.elidable or _has_versions(self.identity())

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_fields(cls, given: Any) -> Any:
        """Offers the nearest field for a mistyped one, at the path of the mistake."""
        if not isinstance(given, Mapping):
            return given
        unknown = [str(name) for name in given if name not in cls.model_fields]
        if unknown:
            raise ValidationError.from_exception_data(
                cls.__name__,
                [
                    {
                        "type": PydanticCustomError(
                            "unknown_field", f"unknown field; {_nearest(name, cls.model_fields)}"
                        ),
                        "loc": (name,),
                        "input": given[name],
                    }
                    for name in unknown
                ],
            )
        return given

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        if is_member(cls) or BaseModel in cls.__bases__:
            return handler(source)
        return core_schema.no_info_plain_validator_function(
            cls._resolve,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda member: member.model_dump(mode="json")
            ),
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        if is_member(cls) or BaseModel in cls.__bases__:
            return handler(schema)
        return {"family": cls.__name__}  # `json_schema` turns this into a reference: families may hold each other

    @classmethod
    def _resolve(cls, given: Any) -> Self:
        if isinstance(given, cls):
            return given
        if isinstance(given, str):
            given = {"kind": given}
        family = cls.__name__.lower()
        if not isinstance(given, Mapping):
            raise PydanticCustomError("component", f"a {family} is a name or a mapping with a `kind`")
        known = members(cls)
        kind = given.get("kind")
        if kind is None:
            raise PydanticCustomError("component_kind", f"`kind` is missing; {_nearest('', known)}")
        if kind not in known:
            raise PydanticCustomError("component_kind", f"no {family} is called '{kind}'; {_nearest(str(kind), known)}")
        return cast(Self, known[kind].model_validate(given))


@cache
def members(family: type[Component]) -> dict[str, type[Any]]:
    """Every member of a family by its kind, in alphabetical order.

    Raises:
        TypeError: two members answer to one kind.
    """
    _import_modules_beside(family.__module__)
    for entry in entry_points(group=ENTRY_POINTS):
        entry.load()
    found: dict[str, type[Component]] = {}
    for member in _descendants(family):
        if not is_member(member):
            continue
        kind = kind_of(member)
        if kind in found and found[kind] is not member:
            raise TypeError(f"two components of family {family.__name__} are called '{kind}'")
        found[kind] = member
    return dict(sorted(found.items()))


def json_schema(component: type[Component]) -> dict[str, Any]:
    """JSON schema of a component and of every family it can hold, for editors."""
    families: dict[str, dict[str, type[Component]]] = {}
    models: list[type[Component]] = [component]
    for model in models:
        for family in _families_in(model):
            if family.__name__ not in families:
                families[family.__name__] = members(family)
                models.extend(member for member in members(family).values() if member not in models)
    references, schema = models_json_schema([(model, "validation") for model in models])
    definitions = schema["$defs"]
    for name, found in families.items():
        choices = [{**references[member, "validation"], "required": ["kind"]} for member in found.values()]
        definitions[name] = {"anyOf": [{"enum": list(found)}, *choices]}
    return {**references[component, "validation"], "$defs": _refer_to_families(definitions)}


def _refer_to_families(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_refer_to_families(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if isinstance(schema.get("family"), str):
        return {"$ref": f"#/$defs/{schema['family']}"}
    return {name: _refer_to_families(item) for name, item in schema.items()}


def _families_in(component: type[Component]) -> Iterator[type[Component]]:
    waiting = [field.annotation for field in component.model_fields.values()]
    while waiting:
        annotation = waiting.pop()
        waiting.extend(get_args(annotation))
        if isinstance(annotation, type) and issubclass(annotation, Component):
            if is_member(annotation):
                yield from _families_in(annotation)
            else:
                yield annotation


def _import_modules_beside(module: str) -> None:
    package = sys.modules[module]
    for found in pkgutil.iter_modules(getattr(package, "__path__", [])):
        importlib.import_module(f"{module}.{found.name}")


def _descendants(family: type[Component]) -> Iterator[type[Component]]:
    for child in family.__subclasses__():
        yield child
        yield from _descendants(child)


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    close = get_close_matches(name, list(known), n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}allowed: {', '.join(known)}"


def _has_versions(identity: Any) -> bool:
    """Whether a component in it, at any depth, was changed since its first version: a default must then be named."""
    if isinstance(identity, list):
        return any(map(_has_versions, identity))
    if not isinstance(identity, Mapping):
        return False
    return ("kind" in identity and "version" in identity) or any(map(_has_versions, identity.values()))


def _canonical(value: Any) -> Any:
    if isinstance(value, Component):
        return value.identity()
    if isinstance(value, BaseModel):  # a part that is no component: of a search
        kind = {"kind": kind_of(type(value))} if "kind" in type(value).model_fields else {}
        return {**kind, **value.model_dump(mode="json", exclude_defaults=True)}
    if isinstance(value, Mapping):
        return {str(name): _canonical(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r} has no canonical form: a component's fields are numbers, names, lists and components")


def require_rising(name: str, values: Sequence[float]) -> None:
    """Refuses a field whose values do not rise.

    Raises:
        ValueError: one is not larger than the one before.
    """
    for smaller, larger in pairwise(values):
        if larger <= smaller:
            raise ValueError(f"{name} must rise, but {smaller} is followed by {larger}")
