"""What a user may vary about a cluster, whatever it runs on, and what every manifest sets alike."""

from __future__ import annotations

import platform
import re
import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.metadata import version
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from cluster.settings import JOB_SERVER, RAY_ENVIRONMENT, STOP_WAIT

ENVIRONMENT = {
    **RAY_ENVIRONMENT,
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "DASHBOARD_METRIC_PORT": "-1",
    "AUTOSCALER_METRIC_PORT": "-1",
    "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT),
}
"""For every Ray process and the driver. Ray serves metrics to anybody who asks, and has no switch for those of its
dashboard and autoscaler: at a port that cannot be opened it goes on without them. A job that is stopped gets time
to save its steps."""

MAKE_TOKEN = """python -c 'import secrets; print(secrets.token_hex(32), end="")'"""
"""Prints a token; what takes it reads a pipe or a file, so that it is on no command line."""
STARTING = ("run", "resume", "search")
"""The commands of hedgerow that start a run."""
RAY_SINCE = (2, 58)
"""The first Ray whose Train counts lost nodes apart, and whose `ray job submit` keeps the words of a command."""
MOST = 1_000_000
"""Of whatever is counted: more is a slip of the hand, and Kubernetes keeps such numbers in 32 bits."""
START_SECONDS = 3600
"""How long a step waits for nodes that a cluster has yet to start."""
BREAKING = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""Control characters, and what ends a line in YAML: the command also stands in comments."""

STORES = re.compile("(s3|gs|az)://[A-Za-z0-9]")
"""How the URL of a store begins that nodes can reach."""
PLACES = "s3://, gs:// or az:// with a bucket, or the path, from / on, of a folder that every node mounts"


def spelled(pattern: str, allowed: str) -> AfterValidator:
    """Refuses text that does not match as a whole, and says in words what does.

    Args:
        pattern: a regular expression.
        allowed: the same in words.
    """

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text, re.ASCII):
            raise ValueError(f"allowed: {allowed}")
        return text

    return AfterValidator(check)


# No quote, blank or control character: what a user writes here ends up in YAML, shell and comments.
Word = Annotated[
    str, spelled("[A-Za-z0-9][A-Za-z0-9._@%+=/-]*", "letters, digits and ._@%+=/-, from a letter or digit on")
]
Name = Annotated[
    str,
    spelled("[a-z]([-a-z0-9]{0,41}[a-z0-9])?", "at most 43 of a-z, 0-9 and -, from a letter on, without - at the end"),
]  # with `-run`, what KubeRay allows a job
Image = Annotated[
    str, spelled("[A-Za-z0-9][A-Za-z0-9._:@/-]*", "letters, digits and ._:@/-, from a letter or digit on")
]
Url = Annotated[str, spelled("[A-Za-z0-9./][A-Za-z0-9._:@%+=/-]*", "a URL or a path, of letters, digits and ._:@%+=/-")]
Path = Annotated[str, spelled("[A-Za-z0-9./~][A-Za-z0-9._/-]*", "a path of letters, digits and ._/-, or one from ~ on")]
Release = Annotated[str, spelled(r"\d+\.\d+\.\d+", "three numbers, such as 3.12.4")]


class Setting(BaseModel):
    """Frozen, and closed to fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=True)


class Group(Setting):
    """Workers of one kind, as few and as many as are needed."""

    name: Name
    """What its nodes are called after."""
    min: int = Field(default=0, ge=0, le=MOST)
    """Nodes that are there from the start."""
    max: int = Field(default=2, ge=1, le=MOST)
    """Nodes at most."""
    cpus: int = Field(default=4, ge=1, le=MOST)
    """CPUs of a node."""
    memory: int = Field(default=16, ge=1, le=MOST)
    """GiB of a node."""
    gpus: int = Field(default=0, ge=0, le=MOST)
    """GPUs of a node."""
    type: Word | None = None
    """Kubernetes: the GPU as the nodes are labelled; AWS and GCP: the machine type."""
    spot: bool = False
    """Whether the nodes may be taken back at short notice, for a fraction of the price."""
    grace: int = Field(default=25, ge=10, le=MOST)
    """Seconds from the notice until the node is gone: its steps save their state and move meanwhile."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"group {self.name}: min {self.min} is above max {self.max}")
        return self

    @classmethod
    def parse(cls, text: str) -> Group:
        """The group that `NAME:field=value,field,...` describes; `spot`, which is yes or no, may stand alone.

        Args:
            text: such as `gpu:cpus=8,gpus=1,type=NVIDIA-H100,max=4,spot`.

        Raises:
            ValueError: a field is unknown or given twice, or its value missing or wrong.
        """
        name, _, rest = text.partition(":")
        fields: dict[str, Any] = {"name": name}
        for field in filter(None, rest.split(",")):
            key, equals, value = field.partition("=")
            if key not in cls.model_fields:
                raise ValueError(f"no such field: {key}; allowed: {', '.join(cls.model_fields)}")
            if key in fields:
                raise ValueError(f"{key} is given twice")
            if not value and (equals or cls.model_fields[key].annotation is not bool):
                raise ValueError(f"{key} needs a value, as in {key}=...")
            fields[key] = value if equals else True
        return cls.model_validate(fields)


class Manifest(Setting, ABC):
    """What a cluster is made of; each target knows how to say it in its own files."""

    target: ClassVar[str]
    sees_files: ClassVar[bool] = True
    """Whether a recipe's file that lies where the manifest is used is there when the command runs."""

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

    @field_validator("command")
    @classmethod
    def _without_program(cls, command: tuple[str, ...]) -> tuple[str, ...]:
        return command[1:] if command[:1] == ("hedgerow",) else command

    @model_validator(mode="after")
    def _can_work(self) -> Self:
        if mistakes := self.mistakes():
            raise ValueError("\n".join(mistakes))
        return self

    def mistakes(self) -> list[str]:
        """A line for each thing that cannot work, whatever else is wrong."""
        found = []
        if tuple(map(int, self.ray.split(".")[:2])) < RAY_SINCE:
            found.append(f"ray: {self.ray} is too old; allowed: {'.'.join(map(str, RAY_SINCE))} and later")
        if not self.command or self.command[0] not in STARTING:
            found.append(f"command: {shlex.join(self.command)!r} starts no run; allowed: {', '.join(STARTING)}")
        if any(word.partition("=")[0] in ("--address", "--store") for word in self.command):
            found.append("command: the manifest sets --address and --store; leave them out (give the store to it)")
        if any(BREAKING.search(word) for word in self.command):
            found.append("command: control characters are not allowed")
        if self.store is not None and "@" in self.store:
            found.append("store: credentials come from the environment of the nodes, not from the URL")
        elif self.store is not None and ":" in self.store and not STORES.match(self.store):
            found.append(f"store: no node finds {self.store}; allowed: {PLACES}")
        return found

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
        return ["hedgerow", *self.command, "--address", address]

    def patience(self, seconds: int) -> list[str]:
        """The option that makes steps wait for nodes, unless the command has it already.

        Args:
            seconds: for which nodes that are not there yet may still be starting.
        """
        given = any(word.partition("=")[0] == "--wait-for-nodes" for word in self.command)
        return [] if given else ["--wait-for-nodes", str(seconds)]

    def submission(self, seconds: int) -> str:
        """The shell command that sends this one to a cluster's job server.

        Args:
            seconds: as for `patience`.
        """
        store = ["--store", self.store] if self.store else []
        return shlex.join(
            ["hedgerow", "submit", "--address", JOB_SERVER, *self.command, *self.patience(seconds), *store]
        )

    def environment(self) -> dict[str, str]:
        """The environment of every Ray process and of the driver; holds no secret."""
        return {**ENVIRONMENT, **({"HEDGEROW_STORE": self.store} if self.store else {})}


class Elastic(Manifest):
    """A cluster whose nodes come and go as there is work, and so keep nothing."""

    groups: tuple[Group, ...] = (Group(name="workers"),)
    """Kinds of workers."""

    def mistakes(self) -> list[str]:
        """What cannot work for want of a store, or of groups that can be told apart, too."""
        found = super().mistakes()
        if self.store is None:
            found.append("store: nodes come and go, so results need a place of their own; give --store URL")
        elif ":" not in self.store and not self.store.startswith("/"):
            found.append(f"store: {self.store} is a folder of one node's; allowed: {PLACES}")
        names = [group.name for group in self.groups]
        if not names or len(set(names)) < len(names):
            found.append(f"groups: at least one, each with a name of its own (found {', '.join(names) or 'none'})")
        return found


def exports(environment: Mapping[str, str]) -> str:
    """The environment as one shell command."""
    return f"export {' '.join(f'{name}={shlex.quote(value)}' for name, value in environment.items())}"
