"""Golden keys: a step of a shipped recipe keeps its name.

A key names fields that differ from their defaults, so a new field must have a default that changes nothing.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
from typing import Any

import pytest
import yaml

from cluster.plan import make_plan
from cluster.store import Store
from workflows.command.recipe import workflow_from_record
from workflows.content import SHIPPED

KEYS: dict[str, dict[str, str]] = {
    "evaluate": {
        "content": "5e500da4bdcf2cd6",
        "train": "6cc2dccd95cdabfa833634f4bd6651c8df936a1f12c47d943f21bfe711cf5794",
        "evaluate": "cbe2af5278972e550675a539f09ef438e8aad30c4745cc3851958a155bef0934",
        "merge-outcomes": "36ce9b4544763b302d4f42d9f3014c74272f6d5d2aa4bf6a74a0bc16e168aae1",
        "evaluate-corrupted": "34192c59e200ecabb4be9a24c0c43499e0fb2e085acfa5946ba6d5c09adc3a48",
        "calibrate-attacked": "b69866dde9a9c9f740bab08b8df0c4fe89c5e6d5b424c72e5045e3880e6e7a6b",
        "all": "62d5fb427439c7ff",
    },
    "epsilon-sweep": {
        "content": "f114dade4f459078",
        "train": "04153b7f51717bdaad25c05d28c6fc83a8c3966a2193cf881edfb6117c0ac6e8",
        "evaluate": "8798456a9d75594afdfe10554e28e83d7d1dee915028d844dd005f09e19b98cd",
        "all": "f3275a07ad35840a",
    },
    "over-design": {
        "content": "619cc327e641789c",
        "train": "bba4a3d209607d9d74a7516e45b6f3e8d874d66e216c9f4923e9c532b88446e9",
        "evaluate": "1bd582d6ce0af455a450e987117e210a196abd78632ac122d2334679df715297",
        "all": "d1e5ea9ef9e28919",
    },
    "quickstart": {
        "content": "6265b31a173c6766",
        "train": "9c36d33488c9337a93c488e73f8baa1e76f1bc7b351076f7c2e395fcd072e28f",
        "evaluate": "3be477d4fb660c8e4672f01aaff1e08284df30e182514da061f45dbeafcf7df9",
        "prune": "6944d374ba80702b121f26ecc0ab5eac2faf653f1124725cc95e7001eee41518",
        "shuffle-mask": "d8755fe123ad31632d6370ac0fefcd2d2ec7978300cceacca71eff03998ce8b8",
        "all": "c69e84fc04f8f90d",
    },
    "imp-mnist": {
        "content": "0b22ddeddff5a9b8",
        "train": "c50ba64696df62ea4055ab3e1ad091cf442dcaa87cc3ce6d714736e189bceb17",
        "evaluate": "6e98556c074535637d29b5f38974dfcebdd83dda4afec6cfae33f35e85b2b286",
        "prune": "74db41dcc97cbbc30d126f7e0a3459acd609bc0abb2621f029eed6d914ff99d5",
        "shuffle-mask": "424d87d3c7b512354fefe61a43a4ef8f1e4623abbb62ee14b701789b6d6cb700",
        "all": "14a2ec9479b0449b",
    },
    "imp-cifar10": {
        "content": "d742b01c33eb8eaf",
        "train": "1dbebaef5dd4abc23bb2af0c2a96edda19998c5ad886770f853f269e2ca2f9f8",
        "evaluate": "9179ec51345b82463c9298a6d2f3b09fa2226176b32578bc6df6e8df437ca4b4",
        "prune": "b39ee7246137dff08adbb2a689b0a7eef52be60c6094a732d47222fe3b5d829a",
        "shuffle-mask": "ed0e46a4e9b8ca922e5ebab6bea8345dd7e69ff7cb0b75a9cda04315883f9bb8",
        "all": "c86d80666b5a7ec6",
    },
    "colt": {
        "content": "39fd2b966a5a0242",
        "train": "2853b1767e4b054eb7b7f81bd0453e8753383504ad83f00e07d327d4b42f20e1",
        "fresh-head": "d91b33b5b13a1dd3722f059585627baa34835fef4fc33618536c3e93dbb1acbb",
        "evaluate": "0565ce45a5db1ae322a2c60a8e6af96eddd5e59839e7fb94a80ff7d2e378a542",
        "prune": "3b873f3412c2d76dc789721fcd21fa4c52521258718bfb4eea1834cea9ec6032",
        "intersect-masks": "c41c244bab72bc8c75864e87790495dac079ce87e2155f1a11334003e337123d",
        "shuffle-mask": "d707581b59f7a6b59438828d906290a98a170bd584c2f8f2db58509234d79cc6",
        "all": "80d198e59a3876e5",
    },
    "compare-pruning": {
        "content": "c426e4bf9bc131a4",
        "train": "8420430f1706a49fcc4480a8e19d36de9497c8010c79cefc55f0aacb12c79c73",
        "evaluate": "e993d0bd3bbd9158471a05283d883f84626a89c1ea8ac2d3172541cabcb763c7",
        "evaluate-corrupted": "08acde03a9813a1661066bc5b2fa984ca974ce4a64acf73f05a7d0296a6e7a30",
        "prune": "7c9b3b441c61418e13ca70d77eb555d26dcf90846fa22ab8814073d715b9bf01",
        "hydra": "18117533ca3b7ea8cbf8a497f9ef0962e0a4dcab366121cbe5b7cf02dd91afd3",
        "prune-channels": "fe0933b7c0f19bdb3d1140fc4272ef6a1886dae24114569e6636375c7c45a4d2",
        "compact": "eeb9d9196e994a71b50e3e424221cbf196d379470cf2546ca30ab9708246a8dd",
        "all": "c53e58753b8b9d3b",
    },
    "connectivity": {
        "content": "63e0f6a8ae1c75cb",
        "train": "4e42310f72e7ba6ca470b345815330d9322cfc6ced905002d82736f2ea234ff4",
        "prune": "8ecb43afc5d6525ba74f5b46b993d74b1b547d29685d2c6c43e99f6eff28c8d0",
        "interpolate": "231d31166c4c490b000a25a8492920c8516c39e68339f24857f111d4c4192859",
        "align": "d514baf12eee3a8d1eb19bc89ee04dd99c17df4364868a04859c4737caeffb96",
        "all": "83607a3a98d8771c",
    },
    "double-descent": {
        "content": "393b13d3f3dcc0de",
        "train": "2a959dd7b5c887e75ac334eb4cfa1984f5f29fd39c257e1e462cd93385c6175d",
        "evaluate": "27829cd744555eb3f0bd1099d4f433da05bef6aa5c4824d2c9242062f037b99c",
        "ticket": "d7c8f68fbd01542318850d750f21401800347a35e6e7338de5309da17f6903d8",
        "prune": "0462739772489a9e02df2b1d5dace8fe77e0fa59daf821a2c0afe089a38756dd",
        "all": "d844a5a6be4411d9",
    },
}
"""For each shipped recipe a digest of its content, its first step of each kind, and a digest of all its steps."""


def content_of(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((SHIPPED / f"{name}.yaml").read_text())
    return content


def digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def keys_of(content: dict[str, Any]) -> dict[str, str]:
    """The first key of each kind of step, and a digest over all keys in their order; needs no data."""
    downloading = copy.deepcopy(content)
    if "train" in content and content["train"]["data"]["kind"] != "mnist-mini":
        downloading["train"]["data"]["download"] = True  # no part of the identity, and nothing is loaded here
    workflow = workflow_from_record({"recipe": downloading}, check=False)
    plan = asyncio.run(make_plan(Store.open("memory://"), workflow.run))
    keys: dict[str, str] = {}
    for step in plan.steps:
        keys.setdefault(step.handle.task.kind, step.handle.key)
    return {**keys, "all": digest([step.handle.key for step in plan.steps])}


@pytest.mark.parametrize("name", KEYS)
def test_the_steps_of_a_shipped_recipe_keep_their_keys(name: str) -> None:
    golden = dict(KEYS[name])
    content = content_of(name)
    assert digest(content) == golden.pop("content"), f"recipe {name} was changed: record its content and its keys anew"
    found = keys_of(content)
    changed = [kind for kind in golden if found.get(kind) != golden[kind]]
    assert not changed, (
        f"steps of {name} have other keys ({', '.join(changed)}), so nothing stored is found: a new field needs a "
        f"default that changes nothing; if a `version` was raised, record {found}"
    )
