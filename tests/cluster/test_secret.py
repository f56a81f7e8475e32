"""What is a secret by its name: no variable is forgotten, and no such file goes to a node, whichever way it would."""

from __future__ import annotations

from pathlib import Path

import pytest
from pathspec import GitIgnoreSpec

from cluster import secret
from cluster.manifests.dockerfile import image_files
from cluster.tree import LEFT_OUT, pack
from tests.cluster.manifests.manifests import documents, made

ROOT = Path(__file__).parents[2]
SECRETS = (
    ".env", ".env.local", "server.pem", "tls.key", "user.p12", "user.pfx", "all.kdbx", "id_rsa", "id_dsa", "id_ecdsa",
    "id_ed25519", ".netrc", "_netrc", ".git-credentials", ".pypirc", ".pgpass", ".htpasswd", "credentials",
    "credentials.json", "auth_token", "token", "hedgerow.token", "kubeconfig",
)  # fmt: skip
"""One for each pattern."""


def left_out(way: str) -> list[str]:
    """The patterns of what stays behind, on a way on which hedgerow's own tree goes to nodes.

    Those of Docker with `**/`, and those of rsync without a slash, mean the same to git.
    """
    if way == "image":
        return image_files("2.60.0", "3.12.4")["Dockerfile.dockerignore"].splitlines()
    (text,) = made(way).files().values()
    return [str(pattern) for pattern in documents(text)[0]["rsync_exclude"]]


@pytest.mark.parametrize("way", ["image", "aws", "gcp", "local"])
@pytest.mark.parametrize("folder", ["", "a/b/"])
def test_no_secret_and_no_result_goes_to_a_node(way: str, folder: str) -> None:
    spec = GitIgnoreSpec.from_lines(left_out(way))
    private = [*SECRETS, ".git/config", ".hedgerow-jobs/1/x", "hedgerow-store/runs", "wandb/run", ".venv/pyvenv.cfg"]
    assert [name for name in private if not spec.match_file(folder + name)] == []


@pytest.mark.parametrize("way", ["image", "local"])
def test_all_that_hedgerow_is_installed_from_goes_to_a_node(way: str) -> None:
    rooms = [path for room in ("cluster", "search_spaces", "tasks", "workflows") for path in (ROOT / room).rglob("*")]
    sources = [path.relative_to(ROOT) for path in rooms if path.is_file() and "__pycache__" not in path.parts]
    spec = GitIgnoreSpec.from_lines(left_out(way))
    assert len(sources) > 100
    assert not [path for path in (*sources, "pyproject.toml", "README.md", "LICENSE") if spec.match_file(path)]


@pytest.mark.parametrize("name", SECRETS)
def test_the_same_files_are_refused_in_a_tree_that_is_submitted(name: str, tmp_path: Path) -> None:
    for path in (tmp_path / name, tmp_path / "a.py"):
        path.touch()
    with pytest.raises(ValueError, match="looks like a secret"):
        pack(tmp_path)


def test_each_pattern_is_tried_and_examples_are_no_secrets() -> None:
    assert len(SECRETS) == len(secret.FILES)
    assert set(secret.FILES) <= set(LEFT_OUT)
    assert not any(map(secret.is_secret_file, (*secret.EXAMPLES, "src/token.py", "cluster/secret.py", "tokens")))


@pytest.mark.parametrize(
    "name",
    [
        "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN", "WANDB_API_KEY", "APIKEY",
        "AZURE_STORAGE_SAS_KEY", "AZURE_SAS", "AZURE_STORAGE_CONNECTION_STRING", "GOOGLE_APPLICATION_CREDENTIALS",
        "PASSPHRASE", "SSH_PASSPHRASE", "CREDENTIALS", "DB_CREDENTIAL", "PGPASSWORD", "SMTP_PASS", "DB_PASSWD",
        "API_KEYS", "hf_token",
    ],
)  # fmt: skip
def test_a_variable_with_the_name_of_a_secret_is_one(name: str) -> None:
    assert secret.secrets_of({name: "0123456789"}) == {name: "0123456789"}


@pytest.mark.parametrize(
    "name", ["KEYBOARD", "MONKEY", "TOKENIZERS_PARALLELISM", "PASSWORDLESS", "PWD", "SASKIA", "COMPASS", "HOME"]
)
def test_a_variable_with_another_name_is_none(name: str) -> None:
    assert not secret.secrets_of({name: "0123456789"})


def test_words_that_stand_in_many_a_text_and_paths_of_files_are_no_secrets(tmp_path: Path) -> None:
    (tmp_path / "key.json").touch()
    given = {
        "MY_TOKEN": "short",
        "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "key.json"),
        "A_KEY": "/base64+lookalike",
    }
    assert list(secret.secrets_of(given)) == ["A_KEY"]
    said = f"no short way to {tmp_path}/key.json with /base64+lookalike"
    assert secret.without_secrets(said, given) == f"no short way to {tmp_path}/key.json with ***"
