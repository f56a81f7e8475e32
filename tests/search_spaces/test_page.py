"""A study's page shows what its trials say, and says what it cannot show."""

from __future__ import annotations

import base64
import json
import re
import warnings
from typing import Any

import numpy as np
import optuna
import plotly.offline
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from search_spaces.page import study_page

NAMES = ["robust@0.1", "size", "sparsity", "latency"]


def study(objectives: int, count: int) -> optuna.Study:
    """The first objective follows `strength`, the second `depth`; the objective to train with says nothing."""
    directions = ["maximize", "minimize", "maximize", "minimize"][:objectives]
    made = optuna.create_study(directions=directions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.set_metric_names(NAMES[:objectives])
    unit, choices = FloatDistribution(0, 1), CategoricalDistribution(["pgd", "<trades>"])
    for number in range(count):
        params: dict[str, Any] = {"strength": (number * 7 % 31) / 31, "depth": (number * 11 % 29) / 29}
        values = [params["strength"] ** 3, 100 * params["depth"], 0.5 + number % 2 / 10, 1.0]
        params["objective"] = choices.choices[number // 3 % 2]
        distributions: dict[str, Any] = {"strength": unit, "depth": unit, "objective": choices}
        trial = create_trial(params=params, distributions=distributions, values=values[:objectives])
        made.add_trial(trial)
    made.add_trial(create_trial(state=TrialState.PRUNED, params={"depth": 0.5}, distributions={"depth": unit}))
    return made


def sections(page: str) -> dict[str, list[dict[str, Any]] | str]:
    """By heading: the traces of the figure, or why there is none."""
    found: dict[str, list[dict[str, Any]] | str] = {}
    for heading, body in re.findall(r"<section><h2>(.*?)</h2>\n(.*?)</section>", page, re.DOTALL):
        missing = re.search(r'<p class="missing">Not drawn: (.*?)</p>', body)
        if missing:
            found[heading] = missing[1]
        else:
            arguments = body[body.index("Plotly.newPlot(") :]
            found[heading], _ = json.JSONDecoder().raw_decode(arguments[arguments.index("[") :])
    return found


def importances(traces: Any) -> dict[str, float]:
    (bars,) = traces
    x = bars["x"]
    return dict(zip(bars["y"], x if isinstance(x, list) else decoded(x), strict=True))


def decoded(packed: dict[str, str]) -> list[float]:
    return [float(value) for value in np.frombuffer(base64.b64decode(packed["bdata"]), packed["dtype"])]


@pytest.mark.parametrize("objectives", [2, 3])
def test_several_objectives_have_a_front_and_each_has_its_figures(objectives: int) -> None:
    shown = sections(study_page(study(objectives, 40), "sparse & robust"))
    kinds = ("Importances for", "Slices of", "Parallel coordinates of")
    assert list(shown) == ["Front", *(f"{kind} {name}" for name in NAMES[:objectives] for kind in kinds)]
    assert not [body for body in shown.values() if isinstance(body, str)]
    assert {trace["type"] for trace in shown["Front"]} == {"scatter" if objectives == 2 else "scatter3d"}  # type: ignore[index]


def test_one_objective_has_a_history() -> None:
    shown = sections(study_page(study(1, 40), "robust"))
    assert next(iter(shown)) == "History of robust@0.1"
    traces: Any = shown["History of robust@0.1"]
    assert [trace["name"] for trace in traces][:2] == ["robust@0.1", "Best Value"]


def test_importances_are_those_for_the_good_end_of_each_objective() -> None:
    """`strength` matters for the best robust accuracies; only `width` tells the worst ones apart."""
    made = optuna.create_study(direction="maximize")
    unit = FloatDistribution(0, 1)
    for number in range(200):
        strength, width = (number * 37 % 199) / 199, (number * 83 % 197) / 197
        value = 1 + strength if strength > 0.85 else (-1 - width if width > 0.85 else 0.5)
        params = {"strength": strength, "width": width}
        made.add_trial(create_trial(params=params, distributions=dict.fromkeys(params, unit), value=value))
    found = importances(sections(study_page(made, "x"))["Importances for objective 0"])
    assert found["strength"] > 0.8


def test_what_trials_do_not_suffice_for_is_left_out_with_the_reason() -> None:
    assert set(sections(study_page(study(2, 0), "x")).values()) == {
        "no trial is complete yet",
        "importances need 4 complete trials, there are 0",
    }
    few = sections(study_page(study(2, 3), "x"))
    assert few["Importances for size"] == "importances need 4 complete trials, there are 3"
    assert not isinstance(few["Front"], str)
    many = sections(study_page(study(4, 12), "x"))
    assert many["Front"] == "a front of 4 objectives has no picture"
    assert many["Importances for latency"] == "latency is the same in all trials"


def test_parallel_coordinates_keep_every_trial_although_some_lack_a_parameter() -> None:
    made = study(1, 12)
    unit = FloatDistribution(0, 1)
    made.add_trial(create_trial(params={"depth": 0.5}, distributions={"depth": unit}, value=0.5))
    traces: Any = sections(study_page(made, "x"))["Parallel coordinates of robust@0.1"]
    assert len([trace for trace in traces if trace["mode"] == "lines"]) == 13
    made.add_trial(create_trial(params={"strength": 0.5}, distributions={"strength": unit}, value=0.5))
    assert sections(study_page(made, "x"))["Parallel coordinates of robust@0.1"] == (
        "no parameter is one of every trial"
    )


def test_the_page_needs_no_network_and_holds_plotly_once() -> None:
    page = study_page(study(2, 10), 'a <b> & "c"')
    assert page.count(plotly.offline.get_plotlyjs()) == 1
    rest = page.replace(plotly.offline.get_plotlyjs(), "")
    assert not re.search(r"<link|src=|https?://(?!plot\.ly)", rest)
    assert "<title>a &lt;b&gt; &amp; &quot;c&quot;</title>" in page
    assert "<p>Trials: 10 complete, 1 pruned.</p>" in page
    assert len(rest) < 200_000


def test_the_same_study_gives_the_same_page_and_no_word_on_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    made = study(2, 10)
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert study_page(made, "x") == study_page(made, "x")
    assert capfd.readouterr() == ("", "")
