"""Ray's own cluster launcher, `ray up`: machines of AWS, of GCP, or some that are there already."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import yaml
from pydantic import Field

from cluster.manifests.manifest import (
    MAKE_TOKEN,
    MOST,
    START_SECONDS,
    Elastic,
    Group,
    Manifest,
    Path,
    Setting,
    Word,
    exports,
    spelled,
)
from cluster.settings import HEAD_PORT
from cluster.tree import LEFT_OUT

Host = Annotated[str, spelled("[A-Za-z0-9]([A-Za-z0-9.:-]*[A-Za-z0-9])?", "the name or address of a host")]
Profile = Annotated[
    str, spelled("[A-Za-z0-9_+=,.@-]+", "the name of the profile, not its ARN, of letters, digits and _+=,.@-")
]
HEAD = "head"
SOURCE = "~/hedgerow-source"
"""Where the working tree lies on each node."""
PROFILE = "~/.hedgerow-environment"
"""What every shell on a node reads first, those of the jobs that are submitted too."""


class _Machines(Setting):
    """What all launched clusters share."""

    ssh_user: Word = "ubuntu"
    """Who logs in on the nodes, with a key."""
    ssh_private_key: Path | None = None
    """The key; made by Ray on AWS and GCP when not given."""
    source: Path = "."
    """hedgerow's working tree on this machine; installed on every node."""
    setup: tuple[str, ...] = ()
    """Shell lines run on each node before hedgerow is installed, such as one that mounts the store."""


class Aws(_Machines, Elastic):
    """EC2 machines."""

    target: ClassVar[str] = "aws"

    region: Word = "us-west-2"
    """Where the machines are."""
    zones: tuple[Word, ...] = ()
    """Availability zones, in the order they are tried; those of the region when none."""
    head_type: Word = "m5.xlarge"
    """Machine type of the head, where the driver runs; no step does."""
    image_id: Word | None = None
    """AMI; AWS's Deep Learning AMI when not given, in the regions that Ray knows."""
    instance_profile: Profile | None = None
    """IAM instance profile that may read and write the store; without it workers have no credentials for S3."""
    disk_gib: int = Field(default=200, ge=20, le=65_536)
    """Disk of each machine."""

    def mistakes(self) -> list[str]:
        """What AWS has no machine for, too."""
        elsewhere = [zone for zone in self.zones if not zone.startswith(self.region)]
        return [
            *super().mistakes(),
            *_mistakes_of(self.groups),
            *(f"zones: {zone} is not in the region {self.region}" for zone in elsewhere),
        ]

    def files(self) -> dict[str, str]:
        """`ray-aws.yaml`."""
        provider: dict[str, Any] = {"type": "aws", "region": self.region, "cache_stopped_nodes": False}
        if self.zones:
            provider["availability_zone"] = ",".join(self.zones)
        provider["security_group"] = {"GroupName": self.name}
        types = {HEAD: self._machine(self.head_type, spot=False)}
        types |= {group.name: self._machine(group.type or "m5.xlarge", group.spot) for group in self.groups}
        opening = AWS.format(**_words(self)) + (NO_CREDENTIALS if self._lacking else "")
        return {"ray-aws.yaml": opening + _launched(self, self, provider, types, "aws")}

    def steps(self, folder: str) -> list[str]:
        """Token, launch, forward, submit; first what is missing."""
        return [*self._lacking, *_steps(self, self, f"{folder}/ray-aws.yaml")]

    @property
    def _lacking(self) -> list[str]:
        lacks = f"{self.store}".startswith("s3:") and not self.instance_profile
        return [LACKING.format(field="instance_profile=NAME")] if lacks else []

    def _machine(self, kind: str, spot: bool) -> dict[str, Any]:
        disk = {"VolumeSize": self.disk_gib, "VolumeType": "gp3", "Encrypted": True}
        machine: dict[str, Any] = {
            "InstanceType": kind,
            "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": disk}],
            "MetadataOptions": {"HttpTokens": "required"},
        }
        if self.image_id:
            machine["ImageId"] = self.image_id
        if self.instance_profile:
            machine["IamInstanceProfile"] = {"Name": self.instance_profile}
        if spot:
            machine["InstanceMarketOptions"] = {"MarketType": "spot"}
        return machine


class Gcp(_Machines, Elastic):
    """Compute Engine machines."""

    target: ClassVar[str] = "gcp"

    project: Word
    """The project's id."""
    region: Word = "us-west1"
    """Where the machines are."""
    zone: Word = "us-west1-a"
    """Where in the region."""
    head_type: Word = "n2-standard-4"
    """Machine type of the head, where the driver runs; no step does."""
    gpu: Word = "nvidia-l4"
    """Which GPU the machines of a group with `gpus` get."""
    source_image: Path = "projects/deeplearning-platform-release/global/images/family/common-cu124"
    """The machines' image."""
    service_account: Word | None = None
    """Email of one that may read and write the store; without it workers have no credentials for Cloud Storage."""
    disk_gib: int = Field(default=200, ge=20, le=65_536)
    """Disk of each machine."""

    def mistakes(self) -> list[str]:
        """What Google Cloud has no machine for, too."""
        found = [*super().mistakes(), *_mistakes_of(self.groups)]
        if not self.zone.startswith(f"{self.region}-"):
            found.append(f"zone: {self.zone} is not in the region {self.region}; give zone and region")
        return found

    def files(self) -> dict[str, str]:
        """`ray-gcp.yaml`."""
        provider = {
            "type": "gcp",
            "region": self.region,
            "availability_zone": self.zone,
            "project_id": self.project,
        }
        types = {HEAD: self._machine(self.head_type, 0, spot=False)}
        types |= {
            group.name: self._machine(group.type or "n2-standard-4", group.gpus, group.spot) for group in self.groups
        }
        opening = GCP.format(**_words(self)) + (NO_CREDENTIALS if self._lacking else "")
        return {"ray-gcp.yaml": opening + _launched(self, self, provider, types, "gcp")}

    def steps(self, folder: str) -> list[str]:
        """Token, launch, forward, submit; first what is missing."""
        return [*self._lacking, *_steps(self, self, f"{folder}/ray-gcp.yaml")]

    @property
    def _lacking(self) -> list[str]:
        lacks = f"{self.store}".startswith("gs:") and not self.service_account
        return [LACKING.format(field="service_account=EMAIL")] if lacks else []

    def _machine(self, kind: str, gpus: int, spot: bool) -> dict[str, Any]:
        first = {"diskSizeGb": self.disk_gib, "sourceImage": self.source_image}
        machine: dict[str, Any] = {
            "machineType": kind,
            "disks": [{"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": first}],
        }
        if self.service_account:
            scope = "https://www.googleapis.com/auth/cloud-platform"
            machine["serviceAccounts"] = [{"email": self.service_account, "scopes": [scope]}]
        if gpus:
            accelerator = f"projects/{self.project}/zones/{self.zone}/acceleratorTypes/{self.gpu}"
            machine["guestAccelerators"] = [{"acceleratorType": accelerator, "acceleratorCount": gpus}]
            machine["metadata"] = {"items": [{"key": "install-nvidia-driver", "value": "True"}]}
        if spot:
            machine["scheduling"] = [{"provisioningModel": "SPOT", "instanceTerminationAction": "DELETE"}]
        elif gpus:
            machine["scheduling"] = [{"onHostMaintenance": "TERMINATE"}]
        return machine


class Local(_Machines, Manifest):
    """Machines that are there already, reached by SSH, with a folder or a service in common that is the store."""

    target: ClassVar[str] = "local"

    head: Host
    """Where the head runs."""
    workers: tuple[Host, ...] = ()
    """The other machines."""
    cpus: int | None = Field(default=None, ge=0, le=MOST)
    """CPUs of the head that steps may use; all when not given."""

    def mistakes(self) -> list[str]:
        """What the machines do not share, or would do twice, too."""
        found = super().mistakes()
        if self.store is None or not (":" in self.store or self.store.startswith("/")):
            found.append("store: give a URL, or the path of a folder that all machines mount, from / on")
        hosts = [self.head, *self.workers]
        twice = sorted({host for host in hosts if hosts.count(host) > 1})
        if twice:
            found.append(f"workers: each machine once, and the head is none of them (found twice: {', '.join(twice)})")
        return found

    def files(self) -> dict[str, str]:
        """`ray-local.yaml`."""
        provider = {"type": "local", "head_ip": self.head, "worker_ips": list(self.workers)}
        body = {
            "cluster_name": self.name,
            "provider": provider,
            "max_workers": len(self.workers),
            **_common(self, self, None, {} if self.cpus is None else {"num-cpus": str(self.cpus)}),
        }
        return {"ray-local.yaml": LOCAL.format(**_words(self)) + _text(body)}

    def steps(self, folder: str) -> list[str]:
        """Token, launch, forward, submit."""
        return _steps(self, self, f"{folder}/ray-local.yaml")


def _mistakes_of(groups: tuple[Group, ...]) -> list[str]:
    untyped = [group for group in groups if group.gpus and not group.type]
    return [
        *(f"group {each.name}: gpus={each.gpus} needs the machine type that has them; give type=" for each in untyped),
        *(f"group {HEAD}: the head is called so; give another name" for each in groups if each.name == HEAD),
    ]


def _launched(
    manifest: Elastic, machines: _Machines, provider: Mapping[str, Any], types: dict[str, Any], cloud: str
) -> str:
    head = {"resources": {"CPU": 0}, "node_config": types[HEAD]}
    body = {
        "cluster_name": manifest.name,
        "provider": provider,
        "max_workers": sum(group.max for group in manifest.groups),
        "idle_timeout_minutes": 5,
        "head_node_type": HEAD,
        "available_node_types": {HEAD: head, **{each.name: _node(each, types[each.name]) for each in manifest.groups}},
        **_common(manifest, machines, _notice(manifest.groups, cloud), {}),
    }
    return _text(body)


def _node(group: Group, machine: dict[str, Any]) -> dict[str, Any]:
    resources = {"CPU": group.cpus, **({"GPU": group.gpus} if group.gpus else {})}
    labels = {"group": group.name, "market": "spot" if group.spot else "on-demand"}
    counts = {"min_workers": group.min, "max_workers": group.max}
    return {**counts, "resources": resources, "labels": labels, "node_config": machine}


def _notice(groups: tuple[Group, ...], cloud: str) -> str | None:
    """What waits, beside the nodes, for the notice that the machine will be taken back."""
    grace = [group.grace for group in groups if group.spot]
    if not grace:
        return None
    watch = f"python -m cluster.leaving --on-notice {cloud} --within {min(grace)} --address $RAY_HEAD_IP:{HEAD_PORT}"
    return f"nohup {watch} > ~/leaving.log 2>&1 < /dev/null &"


def _common(
    manifest: Manifest, machines: _Machines, notice: str | None, head_options: Mapping[str, str]
) -> dict[str, Any]:
    environment = exports(manifest.environment())
    options = {
        "port": str(HEAD_PORT),
        "dashboard-host": "127.0.0.1",
        "autoscaling-config": "~/ray_bootstrap_config.yaml",
    }
    head = " ".join(f"--{name}={value}" for name, value in {**options, **head_options}.items())
    start = f"source {PROFILE}; ulimit -n 65536; ray start --disable-usage-stats"
    stop = f"source {PROFILE}; ray stop"
    return {
        "auth": {
            "ssh_user": machines.ssh_user,
            **({"ssh_private_key": machines.ssh_private_key} if machines.ssh_private_key else {}),
        },
        "file_mounts": {SOURCE: machines.source, "~/.ray/auth_token": _token(manifest)},
        "rsync_exclude": list(LEFT_OUT),
        "initialization_commands": ["mkdir -p -m 700 ~/.ray"],
        "setup_commands": [
            "chmod 600 ~/.ray/auth_token",
            *machines.setup,
            "test -x ~/.local/bin/uv || curl -LsSf https://astral.sh/uv/install.sh | sh",
            f"~/.local/bin/uv venv --allow-existing --python {manifest.python} ~/hedgerow-venv",
            "~/.local/bin/uv pip install --python ~/hedgerow-venv/bin/python "
            f'--reinstall-package hedgerow {SOURCE}"[multi-gpu]" "ray[default]=={manifest.ray}"',
            f"""echo 'export PATH="$HOME/hedgerow-venv/bin:$PATH"; {environment}' > {PROFILE}""",
            f"grep -q {PROFILE} ~/.bashrc || echo 'source {PROFILE}' >> ~/.bashrc",
        ],
        "head_start_ray_commands": [stop, f"{start} --head {head}"],
        "worker_start_ray_commands": [
            stop,
            f"{start} --address=$RAY_HEAD_IP:{HEAD_PORT}",
            *([f"source {PROFILE}; {notice}"] if notice else []),
        ],
    }


def _token(manifest: Manifest) -> str:
    return f"~/.hedgerow/{manifest.name}.token"


def _where(source: str) -> list[str]:
    """What is to be known of a path that is looked for where `ray up` is typed, as Ray does it."""
    fixed = source.startswith(("/", "~"))
    return [] if fixed else [f"# `source: {source}`, hedgerow's working tree, is seen from where `ray up` is typed"]


def _steps(manifest: Manifest, machines: _Machines, path: str) -> list[str]:
    token = _token(manifest)
    return [
        f"(umask 077; mkdir -p ~/.hedgerow; test -s {token} || {MAKE_TOKEN} > {token})",
        f"export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={token}",
        *_where(machines.source),
        f"ray up {shlex.quote(path)}",
        f"ray dashboard {shlex.quote(path)} &",
        manifest.submission(START_SECONDS),
    ]


def _words(manifest: Manifest) -> dict[str, str]:
    return {"python": manifest.python, "token": _token(manifest)}


def _text(body: dict[str, Any]) -> str:
    return yaml.safe_dump(body, sort_keys=False, width=1000)


SHARED = """\
#
# The dashboard, with the job server, listens on the head's loopback alone; `ray dashboard` forwards it over SSH.
# The token that every process of the cluster shares is a file of mode 600, here and on each node; it is in no manifest:
#   {token}
# Without the token Ray answers gRPC health checks and, over HTTP, /api/healthz and /api/local_raylet_healthz, and the
# dashboard /api/gcs_healthz, /api/authentication_mode and its login page, `/`. Ray does not encrypt what it sends: the
# network between the nodes must be trusted, and closed to others.
# All nodes get Python {python}; the driver's must be the same, which `hedgerow submit` sees to by running it there.
"""
AWS = (
    """\
# A cluster on AWS: `ray up` starts the head, which starts and ends workers as there is work.
# The security group lets the nodes talk to each other and nobody else in, but for SSH, which Ray opens to the world:
# narrow that rule to your addresses, or name groups of your own (SecurityGroupIds in each node_config).
"""
    + SHARED
)
GCP = (
    """\
# A cluster on Google Cloud: `ray up` starts the head, which starts and ends workers as there is work.
# Ray makes no firewall rules here. Those of the default network let its machines talk to each other and SSH in from
# everywhere, with keys alone: narrow default-allow-ssh to your addresses, and add no rule that opens other ports.
"""
    + SHARED
)
NO_CREDENTIALS = """\
#
# The workers have no credentials for the store: Ray gives an identity of its own making to the head alone. Give them
# one that may read and write the store: `instance_profile` on AWS, `service_account` on Google Cloud.
"""
LACKING = "# the workers have no credentials for the store; make the file again with --set {field}"
LOCAL = (
    """\
# A cluster on machines of your own. `ray stop` at the start ends whatever else this user runs with Ray on them.
# Their firewall must let them talk to each other at every port, and others in by SSH alone.
"""
    + SHARED
)
