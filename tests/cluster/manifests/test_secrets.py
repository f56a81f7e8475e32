"""No manifest holds a secret."""

from __future__ import annotations

import re

import pytest

from cluster.manifests import TARGETS
from tests.cluster.manifests.manifests import made

SECRETS = {
    "RAY_AUTH_TOKEN": "4f1ddd0c0ffee" * 4,
    "AWS_SECRET_ACCESS_KEY": "AwsSecretOfThisTest",
    "WANDB_API_KEY": "WandbSecretOfThisTest",
}


@pytest.mark.parametrize("target", TARGETS)
def test_no_file_holds_a_secret_of_the_environment(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    manifest = made(target)
    text = "\n".join([*manifest.files().values(), *manifest.steps("folder")])
    assert not [name for name, value in SECRETS.items() if value in text]
    assert not re.search(r"\b[0-9a-f]{32,}\b", text)
