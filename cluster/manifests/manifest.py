"""What a user may vary about a cluster, whatever it runs on, and what every manifest sets alike."""

from __future__ import annotations

import platform
import re
import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.metadata import version
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from cluster.settings import RAY_ENVIRONMENT

ENVIRONMENT = {
    **RAY_ENVIRONMENT,
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "DASHBOARD_METRIC_PORT": "-1",
    "AUTOSCALER_METRIC_PORT": "-1",
    "RAY_JOB_STOP_WAIT_TIME_S": "60",
}
"""For every Ray process and the driver. Ray serves metrics to anybody who asks, and has no switch for those of its
dashboard and autoscaler: at a port that cannot be opened it goes on without them. A job that is stopped gets a minute
to save its steps; Ray's own three seconds end it before that."""

MAKE_TOKEN = """python -c 'import secrets; print(secrets.token_hex(32), end="")'"""
"""Prints a token; what takes it reads a pipe or a file, so that it is on no command line."""
STARTING = ("run", "resume", "search")
"""The commands of hedgerow that start a run."""

# No quote, blank, colon or control character: what a user writes here ends up in YAML, shell and comments.
Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@%+=/-]*$")]
Name = Annotated[
    str, StringConstraints(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=43)
]  # with `-run`, what KubeRay allows a job
Image = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@/-]*$")]
Url = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9./][A-Za-z0-9._:@%+=/-]*$")]
Path = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9./~][A-Za-z0-9._/-]*$")]
Release = Annotated[str, StringConstraints(pattern=r"^\d+\.\d+\.\d+$")]


class Setting(BaseModel):
    """Frozen, and closed to fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=True)


class Group(Setting):
    """Workers of one kind, as few and as many as are needed."""

    name: Name
    """What its nodes are called after."""
    min: int = Field(default=0, ge=0)
    """Nodes that are there from the start."""
    max: int = Field(default=2, ge=1)
    """Nodes at most."""
    cpus: int = Field(default=4, ge=1)
    """CPUs of a node."""
    memory: int = Field(default=16, ge=1)
    """GiB of a node."""
    gpus: int = Field(default=0, ge=0)
    """GPUs of a node."""
    type: Word | None = None
    """Kubernetes: the GPU as the nodes are labelled; AWS and GCP: the machine type."""
    spot: bool = False
    """Whether the nodes may be taken back at short notice, for a fraction of the price."""
    grace: int = Field(default=25, ge=10)
    """Seconds from the notice until the node is gone: its steps save their state and move meanwhile."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"group {self.name}: min {self.min} is above max {self.max}")
        return self

    @classmethod
    def parse(cls, text: str) -> Group:
        """The group that `NAME:field=value,field,...` describes; a field alone is `true`.

        Args:
            text: such as `gpu:cpus=8,gpus=1,type=NVIDIA-H100,max=4,spot`.

        Raises:
            ValueError: a field is unknown or its value wrong.
        """
        name, _, rest = text.partition(":")
        fields: dict[str, Any] = {"name": name}
        for field in filter(None, rest.split(",")):
            key, equals, value = field.partition("=")
            if key not in cls.model_fields:
                raise ValueError(f"no such field: {key}; allowed: {', '.join(cls.model_fields)}")
            fields[key] = value if equals else True
        return cls.model_validate(fields)


class Manifest(Setting, ABC):
    """What a cluster is made of; each target knows how to say it in its own files."""

    target: ClassVar[str]

    name: Name = "hedgerow"
    """Of the cluster; its resources are called after it."""
    ray: Release = Field(default_factory=lambda: version("ray"))
    """Ray's version, the same on every node and in the driver."""
    python: Release = Field(default_factory=platform.python_version)
    """Python's version, the same on every node and in the driver."""
    store: Url | None = None
    """Where results are kept: s3://, gs:// or az:// URL, or a folder that every node mounts. Never with a password."""
    command: tuple[str, ...] = ("run", "quickstart")
    """What hedgerow is asked to do, as on its command line."""

    @model_validator(mode="after")
    def _can_start(self) -> Self:
        words = self.command[1:] if self.command[:1] == ("hedgerow",) else self.command
        if not words or words[0] not in STARTING:
            raise ValueError(f"command: {shlex.join(self.command)!r} starts no run; allowed: {', '.join(STARTING)}")
        if any(word.partition("=")[0] in ("--address", "--store") for word in words):
            raise ValueError("command: the manifest sets --address and --store; leave them out (give the store to it)")
        if any(re.search(r"[\x00-\x1f\x7f]", word) for word in words):
            raise ValueError("command: control characters are not allowed")
        if self.store is not None and "@" in self.store:
            raise ValueError("store: credentials come from the environment of the nodes, not from the URL")
        return self

    @abstractmethod
    def files(self) -> dict[str, str]:
        """The text of each file, by its name.

        Raises:
            ValueError: the controller that reads a file would refuse it.
        """

    @abstractmethod
    def steps(self, folder: str) -> list[str]:
        """What to type next.

        Args:
            folder: where the files were written.
        """

    def hedgerow(self, address: str) -> list[str]:
        """The words of the command that runs hedgerow.

        Args:
            address: of the cluster, as `--address` takes it.
        """
        words = self.command[1:] if self.command[:1] == ("hedgerow",) else self.command
        return ["hedgerow", *words, "--address", address]

    def environment(self) -> dict[str, str]:
        """The environment of every Ray process and of the driver; holds no secret."""
        return {**ENVIRONMENT, **({"HEDGEROW_STORE": self.store} if self.store else {})}


class Elastic(Manifest):
    """A cluster whose nodes come and go as there is work, and so keep nothing."""

    groups: tuple[Group, ...] = (Group(name="workers"),)
    """Kinds of workers."""

    @model_validator(mode="after")
    def _keeps_results(self) -> Self:
        if self.store is None:
            raise ValueError("store: nodes come and go, so results need a place of their own; give --store URL")
        return self

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [group.name for group in self.groups]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"groups: at least one, each with a name of its own (found {', '.join(names) or 'none'})")
        return self


def exports(environment: Mapping[str, str]) -> str:
    """The environment as one shell command."""
    return f"export {' '.join(f'{name}={shlex.quote(value)}' for name, value in environment.items())}"
