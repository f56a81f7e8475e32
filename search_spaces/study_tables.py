"""One study in the tables of an Optuna database: read and written whole, many trials in one transaction.

Optuna's own interface adds a trial with a dozen queries and a commit: 47 s for 2,000 trials against about one. So rows
go straight into the tables of `optuna.storages.RDBStorage`, whose schema has a version that Optuna checks when it opens
them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from optuna.distributions import distribution_to_json
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, Table, bindparam, delete, func, insert, select, update

MARK = "hedgerow"
"""The user attribute of a study that was written here: any other is never deleted."""
METRIC_NAMES = "study:metric_names"
"""Where Optuna keeps what `Study.set_metric_names` was given."""

STUDIES, TRIALS = models.StudyModel.__table__, models.TrialModel.__table__
DIRECTIONS = models.StudyDirectionModel.__table__
STUDY_USER, STUDY_SYSTEM = models.StudyUserAttributeModel.__table__, models.StudySystemAttributeModel.__table__


class _Part(NamedTuple):
    """A table of which a trial has some rows, the column that tells these apart, and those with what they say."""

    table: Table
    key: str
    says: tuple[str, ...]
    open: bool = False
    """Whether others may add rows: the dashboard keeps its notes there."""


PARTS = {
    "params": _Part(models.TrialParamModel.__table__, "param_name", ("param_value", "distribution_json")),
    "values": _Part(models.TrialValueModel.__table__, "objective", ("value", "value_type")),
    "intermediate": _Part(
        models.TrialIntermediateValueModel.__table__, "step", ("intermediate_value", "intermediate_value_type")
    ),
    "user": _Part(models.TrialUserAttributeModel.__table__, "key", ("value_json",), open=True),
    "system": _Part(models.TrialSystemAttributeModel.__table__, "key", ("value_json",), open=True),
}
HEARTBEATS = models.TrialHeartbeatModel.__table__

Rows = dict[Any, tuple[Any, ...]]


class Contradiction(Exception):
    """What is stored cannot become what is wanted by adding to it."""


class Foreign(ValueError):
    """A study that hedgerow did not write."""


@dataclass
class Row:
    """A trial as the tables have it, without its dates."""

    state: TrialState
    parts: dict[str, Rows] = field(default_factory=lambda: {name: {} for name in PARTS})

    @classmethod
    def of(cls, trial: FrozenTrial) -> Row:
        """What the tables should have of a trial."""
        values, steps = models.TrialValueModel, models.TrialIntermediateValueModel
        return cls(
            trial.state,
            {
                "params": {
                    name: (
                        float(trial.distributions[name].to_internal_repr(value)),
                        distribution_to_json(trial.distributions[name]),
                    )
                    for name, value in trial.params.items()
                },
                "values": {
                    number: values.value_to_stored_repr(value) for number, value in enumerate(trial.values or [])
                },
                "intermediate": {
                    step: steps.intermediate_value_to_stored_repr(value)
                    for step, value in trial.intermediate_values.items()
                },
                "user": {name: (json.dumps(value),) for name, value in trial.user_attrs.items()},
                "system": {name: (json.dumps(value),) for name, value in trial.system_attrs.items()},
            },
        )

    def is_shown_by(self, stored: Row) -> bool:
        """Whether nothing needs to be written.

        Raises:
            Contradiction: it needs to, but what is stored is not an earlier stage of this trial.
        """
        same = all(
            rows.items() <= stored.parts[name].items() if PARTS[name].open else rows == stored.parts[name]
            for name, rows in self.parts.items()
        )
        if same and self.state == stored.state:
            return True
        if stored.state.is_finished() or self.parts["params"] != stored.parts["params"]:
            raise Contradiction
        return False


@dataclass(frozen=True)
class About:
    """What a study is beside its trials."""

    name: str
    directions: tuple[str, ...]
    """`maximize` or `minimize`, by objective."""
    figures: tuple[str, ...]
    """What the objectives are called."""


def find(connection: Connection, about: About) -> int | None:
    """The number by which the tables know a study, if it is there.

    Raises:
        Contradiction: a study of this name is there and is another one.
        Foreign: it was not written by hedgerow.
    """
    study = connection.execute(select(STUDIES.c.study_id).where(STUDIES.c.study_name == about.name)).scalar()
    if study is None:
        return None
    user = dict(_pairs(connection, STUDY_USER, study))
    if MARK not in user:
        raise Foreign(f"a study '{about.name}' is there already that hedgerow did not write; name another --study")
    system = dict(_pairs(connection, STUDY_SYSTEM, study))
    rows = connection.execute(select(DIRECTIONS).where(DIRECTIONS.c.study_id == study))
    directions = {row.objective: row.direction for row in rows}
    if directions != dict(enumerate(map(_direction, about.directions))):
        raise Contradiction
    if system.get(METRIC_NAMES) != json.dumps(list(about.figures)):
        raise Contradiction
    return int(study)


def create(connection: Connection, about: About) -> int:
    """A new study without trials, in the place of any of the same name.

    Returns:
        its number.
    """
    remove(connection, about.name)
    connection.execute(insert(STUDIES), {"study_name": about.name})
    study = int(connection.execute(select(STUDIES.c.study_id).where(STUDIES.c.study_name == about.name)).scalar_one())
    connection.execute(
        insert(DIRECTIONS),
        [
            {"study_id": study, "objective": number, "direction": _direction(direction)}
            for number, direction in enumerate(about.directions)
        ],
    )
    connection.execute(insert(STUDY_USER), {"study_id": study, "key": MARK, "value_json": json.dumps("search")})
    names = json.dumps(list(about.figures))
    connection.execute(insert(STUDY_SYSTEM), {"study_id": study, "key": METRIC_NAMES, "value_json": names})
    return study


def remove(connection: Connection, name: str) -> None:
    """Deletes a study with all that belongs to it, readable or not."""
    studies = select(STUDIES.c.study_id).where(STUDIES.c.study_name == name)
    trials = select(TRIALS.c.trial_id).where(TRIALS.c.study_id.in_(studies))
    for table in [*(part.table for part in PARTS.values()), HEARTBEATS]:
        connection.execute(delete(table).where(table.c.trial_id.in_(trials)))
    for table in (TRIALS, DIRECTIONS, STUDY_USER, STUDY_SYSTEM, STUDIES):
        connection.execute(delete(table).where(table.c.study_id.in_(studies)))


def read(connection: Connection, study: int) -> list[Row]:
    """All trials of a study, in order of number.

    Raises:
        Contradiction: their numbers or rows cannot be those of a search.
    """
    found = connection.execute(select(TRIALS).where(TRIALS.c.study_id == study).order_by(TRIALS.c.trial_id)).all()
    if [trial.number for trial in found] != list(range(len(found))):
        raise Contradiction
    rows = {trial.trial_id: Row(trial.state) for trial in found}
    for name, (table, key, says, _) in PARTS.items():
        columns = (table.c[column] for column in ("trial_id", key, *says))
        query = select(*columns).join(TRIALS, TRIALS.c.trial_id == table.c.trial_id).where(TRIALS.c.study_id == study)
        for trial_id, which, *said in connection.execute(query):
            rows[trial_id].parts[name][which] = tuple(said)
    return list(rows.values())


def standing(connection: Connection, name: str) -> tuple[int, int] | None:
    """The number of a study and how many trials it has; None when it is not there."""
    found = connection.execute(
        select(STUDIES.c.study_id, func.count(TRIALS.c.trial_id))
        .outerjoin(TRIALS, TRIALS.c.study_id == STUDIES.c.study_id)
        .where(STUDIES.c.study_name == name)
        .group_by(STUDIES.c.study_id)
    ).one_or_none()
    return (found[0], found[1]) if found else None


def add(connection: Connection, study: int, first: int, trials: Sequence[FrozenTrial]) -> None:
    """Adds trials that the study does not have, the first of them with the number `first`."""
    connection.execute(
        insert(TRIALS),
        [
            {
                "study_id": study,
                "number": first + place,
                "state": trial.state,
                "datetime_start": _utc(trial.datetime_start),
                "datetime_complete": _utc(trial.datetime_complete),
            }
            for place, trial in enumerate(trials)
        ],
    )
    ids = _ids(connection, study, range(first, first + len(trials)))
    _insert(connection, {ids[first + place]: Row.of(trial) for place, trial in enumerate(trials)})


def bring_on(connection: Connection, study: int, trials: Mapping[int, FrozenTrial]) -> None:
    """Brings trials that were running to where they are now, by number; when they began stays as it was stored."""
    ids = _ids(connection, study, trials)
    rows = {ids[number]: Row.of(trial) for number, trial in trials.items()}
    connection.execute(
        update(TRIALS).where(TRIALS.c.trial_id == bindparam("which")),
        [
            {"which": ids[number], "state": trial.state, "datetime_complete": _utc(trial.datetime_complete)}
            for number, trial in trials.items()
        ],
    )
    for name, (table, key, _, is_open) in PARTS.items():
        for trial_id, row in rows.items():
            stale = delete(table).where(table.c.trial_id == trial_id)
            connection.execute(stale.where(table.c[key].in_(row.parts[name])) if is_open else stale)
    _insert(connection, rows)


def _insert(connection: Connection, rows: Mapping[int, Row]) -> None:
    for name, (table, key, says, _) in PARTS.items():
        new = [
            {"trial_id": trial_id, key: which, **dict(zip(says, said, strict=True))}
            for trial_id, row in rows.items()
            for which, said in row.parts[name].items()
        ]
        if new:
            connection.execute(insert(table), new)


def _ids(connection: Connection, study: int, numbers: Iterable[int]) -> dict[int, int]:
    """The numbers by which the tables know trials."""
    query = select(TRIALS.c.number, TRIALS.c.trial_id).where(
        TRIALS.c.study_id == study, TRIALS.c.number >= min(numbers), TRIALS.c.number <= max(numbers)
    )
    return {row.number: row.trial_id for row in connection.execute(query)}


def _pairs(connection: Connection, table: Table, study: int) -> list[tuple[str, str]]:
    found = connection.execute(select(table.c.key, table.c.value_json).where(table.c.study_id == study))
    return [(row.key, row.value_json) for row in found]


def _direction(direction: str) -> StudyDirection:
    return StudyDirection[direction.upper()]


def _utc(moment: datetime | None) -> datetime | None:
    """Naive UTC, as Optuna stores it, of naive local time, as Optuna gives it."""
    return moment.astimezone(UTC).replace(tzinfo=None) if moment else None
