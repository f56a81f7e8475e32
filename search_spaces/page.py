"""A study on one page: front, importances, slices and parallel coordinates, in one HTML file that needs no network."""

from __future__ import annotations

import html
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import plotly.offline
from optuna import Study, visualization
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

ENOUGH = 4
"""Complete trials that importances need: the best tenth of fewer says nothing."""
STYLE = """
body { font-family: system-ui, sans-serif; margin: 2rem auto; max-width: 1200px; padding: 0 1rem; color: #222; }
h1, h2 { font-weight: 600; } section { margin-bottom: 2rem; } .missing { color: #777; }
"""


class _NotDrawn(ValueError):
    """Why a figure is left out."""


def study_page(study: Study, title: str) -> str:
    """One self-contained HTML page about a study; plotly's code is in it once.

    Args:
        study: with one objective or several, which its metric names call by name if it has some.
        title: of the page.

    Returns:
        the page. A figure that cannot be drawn of these trials is left out, with a line that says why.
    """
    states = Counter(trial.state.name.lower() for trial in study.get_trials(deepcopy=False))
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none yet"
    sections = [
        f"<section><h2>{html.escape(heading)}</h2>\n{_body(draw, f'figure-{number}')}</section>"
        for number, (heading, draw) in enumerate(_figures(study))
    ]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title>\n<style>{STYLE}</style>'
    code = f"<script>{plotly.offline.get_plotlyjs()}</script>"
    body = f"<h1>{html.escape(title)}</h1>\n<p>Trials: {counts}.</p>\n" + "\n".join(sections)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}\n{code}</head>\n<body>{body}</body></html>\n'


def _body(draw: Callable[[], Any], name: str) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna tells of what is experimental
            drawn: str = draw().to_html(full_html=False, include_plotlyjs=False, default_height="520px", div_id=name)
    except (ValueError, RuntimeError, ImportError) as reason:
        return f'<p class="missing">Not drawn: {html.escape(" ".join(str(reason).split()))}</p>'
    return drawn


def _figures(study: Study) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The figures of the page, each with its heading."""
    objectives = len(study.directions)
    names = study.metric_names or [f"objective {number}" for number in range(objectives)]
    if objectives == 1:
        yield f"History of {names[0]}", partial(_history, study, names[0])
    else:
        yield "Front", partial(_front, study)
    for number, name in enumerate(names):
        yield f"Importances for {name}", partial(_importances, study, number, name)
        yield f"Slices of {name}", partial(_slices, study, number, name)
        yield f"Parallel coordinates of {name}", partial(_parallel, study, number, name)


def _history(study: Study, name: str) -> Any:
    return visualization.plot_optimization_history(_begun(study), target_name=name)


def _front(study: Study) -> Any:
    if len(study.directions) > 3:
        raise _NotDrawn(f"a front of {len(study.directions)} objectives has no picture")
    return visualization.plot_pareto_front(_begun(study))


def _importances(study: Study, number: int, name: str) -> Any:
    complete = _complete(study)
    if len(complete) < ENOUGH:
        raise _NotDrawn(f"importances need {ENOUGH} complete trials, there are {len(complete)}")
    if len({trial.values[number] for trial in complete}) == 1:
        raise _NotDrawn(f"{name} is the same in all trials")
    # PED-ANOVA looks at the lowest values of a target, whatever the direction of the study
    sign = -1 if study.directions[number] == StudyDirection.MAXIMIZE else 1
    return visualization.plot_param_importances(_begun(study), target=_value(number, sign), target_name=name)


def _slices(study: Study, number: int, name: str) -> Any:
    return visualization.plot_slice(_begun(study), target=_value(number), target_name=name)


def _parallel(study: Study, number: int, name: str) -> Any:
    """Optuna leaves out the trials that lack a parameter: so parameters that not all trials have are left out."""
    shared = set.intersection(*(set(trial.params) for trial in _complete(_begun(study))))
    if not shared:
        raise _NotDrawn("no parameter is one of every trial")
    return visualization.plot_parallel_coordinate(study, params=sorted(shared), target=_value(number), target_name=name)


def _begun(study: Study) -> Study:
    if not _complete(study):
        raise _NotDrawn("no trial is complete yet")
    return study


def _complete(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])


def _value(number: int, sign: int = 1) -> Callable[[FrozenTrial], float]:
    return lambda trial: sign * trial.values[number]
