"""What samplers suggest, and what they refuse."""

import re
from collections import Counter
from statistics import median
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from search_spaces.goals import Objective
from search_spaces.samplers import MEMBERS, Grid, Sampler, SamplerModel
from search_spaces.space import Space
from search_spaces.study import Study
from tests.search_spaces.studies import CONDITIONAL, FINITE, KINDS, NUMBERS, ONE, TWO, go_on, open_study, quick, result

READ: TypeAdapter[SamplerModel] = TypeAdapter(Sampler)


class Recipe(BaseModel):
    sampler: Sampler


def opened(sampler: Any, space: Space, objectives: tuple[Objective, ...] = ONE) -> Study:
    return Study("toy", space, READ.validate_python(sampler), objectives)


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"partially-fixed"}))
def test_a_bare_name_is_the_sampler_with_its_defaults(kind: str) -> None:
    assert READ.validate_python(kind) == KINDS[kind]()  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_is_written_out_reads_back(kind: str) -> None:
    recipe = Recipe(sampler=quick(kind))
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize("member", MEMBERS)
def test_every_sampler_says_where_it_comes_from(member: type[SamplerModel]) -> None:
    assert re.search(r"\b(19|20)\d\d\b", (member.__doc__ or "").splitlines()[0])


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("tpr", r"no sampler is called 'tpr'; did you mean 'tpe'\? allowed: cma-es, gp, grid, nsga2, .*, tpe"),
        ({"startup": 3}, r"`kind` is missing; allowed: cma-es"),
        (3, r"a sampler is a name or a mapping with a `kind`; allowed: cma-es"),
        (
            {"kind": "partially-fixed", "fixed": {"a": 1}, "sampler": "partially-fixed"},
            "no sampler is called 'partially-",
        ),
    ],
)
def test_an_unknown_sampler_is_told_what_is_allowed(given: Any, line: str) -> None:
    with pytest.raises(ValidationError, match=line):
        READ.validate_python(given)


def test_a_mistake_in_a_sampler_has_the_path_of_a_recipe() -> None:
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(
            {"sampler": {"kind": "partially-fixed", "fixed": {"a": 1}, "sampler": {"kind": "gp", "s": 1}}}
        )
    assert [mistake["loc"] for mistake in caught.value.errors()] == [("sampler", "sampler", "s")]


@pytest.mark.parametrize(
    ("sampler", "space", "objectives", "line"),
    [
        ("cma-es", NUMBERS, TWO, "sampler cma-es: takes 1 objective, not 2"),
        ("cma-es", FINITE, ONE, "sampler cma-es: parameters.objective: takes int and float, no choice"),
        (
            "cma-es",
            Space.load({"parameters": {"a": {"int": [1, 2]}, "b": {"int": [1, 2], "when": {"a": 1}}}}),
            ONE,
            "sampler cma-es: parameters.b: takes no `when`",
        ),
        ("grid", NUMBERS, ONE, "sampler grid: parameters.train.epsilon: a float needs a `step` here"),
        (
            "grid",
            Space.load({"parameters": {f"p{n}": {"int": [1, 100]} for n in range(9)}}),
            ONE,
            "sampler grid: the space has 1,000,000,000,000,000,000 combinations; allowed: up to 100,000",
        ),
        (
            {"kind": "partially-fixed", "fixed": {"level": 3}},
            NUMBERS,
            ONE,
            "sampler partially-fixed: fixed.level: no such parameter; did you mean 'levels'?",
        ),
        (
            {"kind": "partially-fixed", "fixed": {"levels": 31}},
            NUMBERS,
            ONE,
            "sampler partially-fixed: fixed.levels: cannot be 31; allowed: 2 to 30",
        ),
        (
            {"kind": "partially-fixed", "fixed": {"objective": "free"}},
            FINITE,
            ONE,
            "sampler partially-fixed: fixed.objective: cannot be 'free'; allowed: pgd, trades",
        ),
        (
            {"kind": "partially-fixed", "fixed": {"levels": 3}, "sampler": "cma-es"},
            FINITE,
            ONE,
            "sampler cma-es: parameters.objective: takes int and float, no choice",
        ),
    ],
)
def test_what_a_sampler_cannot_search_is_found_before_any_trial(
    sampler: Any, space: Space, objectives: tuple[Objective, ...], line: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(line)):
        opened(sampler, space, objectives)


def test_the_grid_tries_every_combination_once_and_ends() -> None:
    asked = go_on(open_study("grid", FINITE, ONE), 1000, window=4)
    listed = list(FINITE.combinations())
    assert len(asked) == FINITE.size() == len(listed)
    assert asked != listed
    assert sorted(map(str, asked)) == sorted(map(str, listed))


def test_the_grid_takes_its_order_from_the_key_alone() -> None:
    orders = [go_on(Study(key, FINITE, Grid(), ONE), 84, window=1) for key in ("a", "a", "b")]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("inner", ["tpe", "gp", "grid", "nsga2", "nsga3", "qmc", "random"])
def test_what_is_fixed_stays_and_the_rest_is_searched(inner: str) -> None:
    study = opened({"kind": "partially-fixed", "fixed": {"objective": "trades"}, "sampler": inner}, FINITE)
    asked = go_on(study, 8, window=2)
    assert {parameters["objective"] for parameters in asked} == {"trades"}
    assert len({parameters["levels"] for parameters in asked}) > 2


def test_cma_es_searches_the_numbers_beside_a_fixed_choice() -> None:
    space = Space.load({"parameters": {**NUMBERS.parameters, "objective": {"choice": ["pgd", "trades"]}}})
    study = opened({"kind": "partially-fixed", "fixed": {"objective": "pgd"}, "sampler": "cma-es"}, space)
    asked = go_on(study, 12, window=1)
    assert {parameters["objective"] for parameters in asked} == {"pgd"}
    assert len({parameters["train.epsilon"] for parameters in asked}) == 12


def test_a_grid_beside_a_fixed_value_ends_with_the_combinations_that_have_it() -> None:
    study = opened({"kind": "partially-fixed", "fixed": {"levels": 4}, "sampler": "grid"}, FINITE)
    asked = go_on(study, 1000, window=1)
    wanted = [parameters for parameters in FINITE.combinations() if parameters["levels"] == 4]
    assert sorted(map(str, asked)) == sorted(map(str, wanted))


@pytest.mark.parametrize("sequence", ["sobol", "halton"])
def test_quasi_monte_carlo_spreads_every_parameter_evenly(sequence: str) -> None:
    space = Space.load({"parameters": {"levels": {"int": [1, 8]}, "c": {"choice": ["x", "y"]}, "e": {"float": [0, 1]}}})
    asked = go_on(opened({"kind": "qmc", "sequence": sequence}, space), 64, window=1)
    counts = Counter(parameters["levels"] for parameters in asked)
    assert counts.keys() == set(range(1, 9))
    assert max(counts.values()) - min(counts.values()) <= (0 if sequence == "sobol" else 2)
    assert abs(sum(parameters["c"] == "x" for parameters in asked) - 32) <= 2
    quarters = Counter(int(parameters["e"] * 4) for parameters in asked)
    assert max(quarters.values()) - min(quarters.values()) <= 2


@pytest.mark.parametrize(
    ("kind", "space", "trials"),
    [
        ("tpe", NUMBERS, 40),
        ("tpe", CONDITIONAL, 40),
        ("nsga2", NUMBERS, 60),
        ("cma-es", NUMBERS, 60),
        pytest.param("gp", NUMBERS, 30, marks=pytest.mark.slow),
    ],
)
def test_a_sampler_that_learns_asks_for_better_trials_in_the_end(kind: str, space: Space, trials: int) -> None:
    """The median result of the second half of three studies, against that of independent draws."""

    def reached(name: str) -> float:
        later = []
        for key in ("a", "b", "c"):
            asked = go_on(open_study(name, space, ONE, key), trials, window=2)
            later += [result(0, parameters)["figures"]["robust"] for parameters in asked[trials // 2 :]]
        return median(later)

    assert reached(kind) > reached("random")


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"partially-fixed"}))
def test_nothing_is_warned_of_or_logged(
    kind: str, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    go_on(open_study(kind, NUMBERS if kind == "cma-es" else FINITE, ONE), 7, window=2)
    assert [str(warning.message) for warning in recwarn] == []
    assert capfd.readouterr() == ("", "")
