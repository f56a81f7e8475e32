"""What no cluster can do: refused when the manifest is asked for, in words."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.manifests import Aws, Group, KubeRay
from tests.cluster.manifests.manifests import documents, made


@pytest.mark.parametrize(
    ("target", "fields", "said"),
    [
        ("kuberay", {"store": "ftp://x/y"}, "store: no node finds ftp://x/y; allowed: s3://, gs:// or az://"),
        ("kuberay", {"store": "file:///x"}, "store: no node finds file:///x"),
        ("aws", {"store": "results"}, "store: results is a folder of one node's"),
        ("slurm", {"store": "memory:///"}, "store: no node finds memory:///"),
        ("slurm", {"store": "s3:bucket"}, "store: no node finds s3:bucket"),
        ("slurm", {"gpus": 0, "type": "h100"}, "type: h100 names a GPU; give gpus too"),
        ("slurm", {"notice": 65536}, "less than or equal to 65535"),
        ("gcp", {"zone": "europe-west4-a"}, "zone: europe-west4-a is not in the region us-west1"),
        ("aws", {"zones": ("us-east-1a",)}, "zones: us-east-1a is not in the region us-west-2"),
        ("aws", {"groups": (Group(name="head"),)}, "group head: the head is called so"),
        ("local", {"workers": ("10.0.0.1",)}, r"the head is none of them \(found twice: 10.0.0.1\)"),
        ("local", {"workers": ("b", "b")}, "workers: each machine once"),
        ("kuberay", {"groups": (Group(name="headgroup"),)}, "group headgroup: Ray's autoscaler calls the head so"),
    ],
)
def test_impossible_values_are_refused(target: str, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made(target, **fields)


def test_a_field_of_a_group_is_given_once() -> None:
    with pytest.raises(ValueError, match="cpus is given twice"):
        Group.parse("a:cpus=1,cpus=2")
    with pytest.raises(ValueError, match="name is given twice"):
        Group.parse("a:name=b")


@pytest.mark.parametrize("text", ["Lab", "lab-", "1lab", "l\n", "a" * 44, "läb"])
def test_what_may_be_written_is_said_in_words(text: str) -> None:
    with pytest.raises(ValueError, match="allowed: at most 43 of a-z, 0-9 and -, from a letter on") as refused:
        made("kuberay", name=text)
    assert "pattern" not in str(refused.value)


def test_a_missing_store_hides_no_other_mistake() -> None:
    with pytest.raises(ValueError, match="give --store URL") as refused:
        KubeRay(groups=(Group(name="a"), Group(name="a")), command=("doctor",))
    assert "each with a name of its own" in str(refused.value)
    assert "starts no run" in str(refused.value)


def test_an_s3_store_without_a_profile_is_told_before_anything_is_typed() -> None:
    lacking = Aws(store="s3://bucket/x")
    assert lacking.steps("f")[0].endswith("no credentials for the store; make the file again with --set "
                                          "instance_profile=NAME")  # fmt: skip
    assert "# The workers have no credentials" in lacking.files()["ray-aws.yaml"]
    for enough in (Aws(store="s3://bucket/x", instance_profile="store"), Aws(store="/shared/x")):
        assert not enough.steps("f")[0].startswith("#")
        assert "no credentials" not in enough.files()["ray-aws.yaml"]


def test_google_machines_get_the_service_account_that_the_store_wants() -> None:
    lacking = made("gcp", store="gs://bucket/x")
    assert lacking.steps("f")[0].endswith("--set service_account=EMAIL")
    assert "# The workers have no credentials" in lacking.files()["ray-gcp.yaml"]
    enough = made("gcp", store="gs://bucket/x", service_account="store@lab-1.iam.gserviceaccount.com")
    assert not enough.steps("f")[0].startswith("#")
    worker = documents(enough.files()["ray-gcp.yaml"])[0]["available_node_types"]["cpu"]["node_config"]
    assert worker["serviceAccounts"][0]["email"] == "store@lab-1.iam.gserviceaccount.com"
