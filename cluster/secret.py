"""What is a secret, by its name: files that go to no cluster, variables whose values no message repeats."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Mapping

FILES = (
    ".env", ".env.*", "*.pem", "*.key", "*.p12", "*.pfx", "*.kdbx", "id_rsa", "id_dsa", "id_ecdsa", "id_ed25519",
    ".netrc", "_netrc", ".git-credentials", ".pypirc", ".pgpass", ".htpasswd", "credentials", "credentials.json",
    "auth_token", "token", "*.token", "kubeconfig",
)  # fmt: skip
"""Patterns for the names of files, wherever they lie."""
EXAMPLES = (".env.example", ".env.sample", ".env.template", ".env.dist")
"""Files that are none of these."""
SHORTEST = 8
"""Characters: no service should take a shorter password (NIST SP 800-63B), and shorter words stand in many a text."""
_VARIABLE = re.compile(
    "(SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|APIKEY)S?(_|$)|(^|_)(KEYS?|SAS|PASS|CONNECTION_STRING)(_|$)",
    re.IGNORECASE,
)
"""Ends of words, as in PGPASSWORD; and whole ones, for KEYBOARD is no key. TOKENIZERS_PARALLELISM is no token."""


def names_secret(variable: str) -> bool:
    """Whether a variable of this name holds a secret."""
    return _VARIABLE.search(variable) is not None


def is_secret_file(path: str) -> bool:
    """Whether a file with this path holds secrets, by its name."""
    name = path.rsplit("/", 1)[-1].lower()
    return name not in EXAMPLES and any(fnmatch.fnmatchcase(name, pattern) for pattern in FILES)


def secrets_of(environment: Mapping[str, str]) -> dict[str, str]:
    """The values that nobody is to see, by their variables: neither short ones nor the path of a file that is there."""
    return {
        name: value
        for name, value in environment.items()
        if names_secret(name) and len(value) >= SHORTEST and not (value.startswith("/") and os.path.exists(value))
    }


def without_secrets(text: str, environment: Mapping[str, str]) -> str:
    """The text with stars for the environment's secrets: what a service says may repeat what it was given."""
    for value in secrets_of(environment).values():
        text = text.replace(value, "***")
    return text
