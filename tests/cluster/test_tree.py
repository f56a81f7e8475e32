"""What goes to a cluster, and what never does."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import zipfile
from pathlib import Path

import pytest

from cluster.secret import secrets_of
from cluster.tree import pack

KEY = b"-----BEGIN RSA " + b"PRIVATE KEY-----\nabc\n"


def write(root: Path, *paths: str, content: str = "x") -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)


def test_the_files_are_those_that_git_would_keep(tmp_path: Path) -> None:
    write(
        tmp_path, "a.py", "data/big.bin", "data/small.csv", "logs/one.log", "logs/keep.log", "deep/er/out.txt",
        "deep/er/in.txt", "deep/build/x", "build/y", "notes/private/z", "deep/only-here.txt", "only-here.txt",
    )  # fmt: skip
    write(tmp_path, ".gitignore", content="*.log\n!keep.log\n/build/\ndata/*\n!data/small.csv\nprivate\n")
    write(tmp_path, "deep/.gitignore", content="/only-here.txt\n*.txt\n!in.txt\n")
    write(tmp_path, "deep/er/.gitignore", content="!out.txt\n")
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null"}
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True, env=environment)
    write(tmp_path, ".git/info/exclude", content="notes/\n")
    write(tmp_path, "notes/open")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=tmp_path, check=True, env=environment, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    assert list(pack(tmp_path).files) == sorted(listed)
    assert "deep/er/out.txt" in listed
    assert list(pack(tmp_path / "deep").files) == sorted(
        path.removeprefix("deep/") for path in listed if path.startswith("deep/")
    )


def test_rules_above_the_tree_hold_in_it(tmp_path: Path) -> None:
    write(tmp_path, "part/a.py", "part/a.tmp", ".git/HEAD")
    write(tmp_path, ".gitignore", content="*.tmp\n")
    assert pack(tmp_path / "part").files == ("a.py",)


def test_environments_stores_and_what_is_named_stay(tmp_path: Path) -> None:
    write(
        tmp_path, "a.py", "venv-of-mine/pyvenv.cfg", "venv-of-mine/lib/b.py", "hedgerow-store/steps/s",
        "hedgerow-results/r", "__pycache__/a.pyc", "shared/steps/s", "tests/t.py", ".git/HEAD",
        ".hedgerow-jobs/4711/head.log", "deep/.hedgerow-jobs/4711/token",
    )  # fmt: skip
    write(tmp_path, ".rayignore", content="tests/\n")
    assert pack(tmp_path, without=[tmp_path / "shared"]).files == (".rayignore", "a.py")


def test_the_package_is_named_by_its_content_alone(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write(tmp_path / folder, "b.txt", "a/c.txt")
    os.utime(tmp_path / "two" / "b.txt", (1, 1))
    one, two = pack(tmp_path / "one"), pack(tmp_path / "two")
    assert (one.digest, one.data) == (two.digest, two.data)
    (tmp_path / "two" / "b.txt").chmod(0o755)
    executable = pack(tmp_path / "two")
    assert executable.digest != one.digest
    with zipfile.ZipFile(io.BytesIO(executable.data)) as archive:
        assert {entry.filename: entry.external_attr >> 16 & 0o777 for entry in archive.infolist()} == {
            "a/c.txt": 0o644,
            "b.txt": 0o755,
        }
    write(tmp_path / "two", "b.txt", content="y")
    assert pack(tmp_path / "two").digest != executable.digest
    (tmp_path / "one" / "b.txt").rename(tmp_path / "one" / "d.txt")
    assert pack(tmp_path / "one").digest != one.digest


def test_every_symlink_that_would_go_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path, "tree/a.py", "outside/secret.txt")
    tree = tmp_path / "tree"
    (tree / "inside").symlink_to("a.py")
    (tree / "folder").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="symlink") as error:
        pack(tree)
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == ["folder", "inside"]
    write(tree, ".gitignore", content="inside\nfolder\n")
    assert pack(tree).files == (".gitignore", "a.py")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.py")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        here = Path.cwd()
        os.chdir(tmp_path)  # the path of a socket must be short
        try:
            listening.bind("plug")
        finally:
            os.chdir(here)
        with pytest.raises(ValueError, match="neither a file") as error:
            pack(tmp_path)
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == ["pipe", "plug"]


@pytest.mark.parametrize(
    "name",
    [".env", ".env.local", "id_rsa", "keys/server.PEM", ".netrc", ".aws/credentials", "x/auth_token", "jobs/1/token"],
)
def test_files_with_the_names_of_secrets_are_refused_unless_allowed_or_ignored(name: str, tmp_path: Path) -> None:
    write(tmp_path, "a.py", name)
    with pytest.raises(ValueError, match=f"^{name}: looks like a secret: .*--allow {name}`$"):
        pack(tmp_path)
    assert name in pack(tmp_path, allowed=[name]).files
    write(tmp_path, ".gitignore", content=f"{name}\n")
    assert name not in pack(tmp_path).files


def test_files_that_hold_a_secret_are_refused_and_the_secret_is_not_told(tmp_path: Path) -> None:
    secrets = secrets_of({"AWS_SECRET_ACCESS_KEY": "planted-0123456789", "HOME": "/home/somebody", "MY_TOKEN": "short"})
    write(tmp_path, "notes.md", content="short: the key is planted-0123456789, somebody said")
    (tmp_path / "key.txt").write_bytes(KEY)
    with pytest.raises(ValueError, match="holds") as error:
        pack(tmp_path, secrets=secrets)
    first, second = str(error.value).splitlines()
    assert first.startswith("key.txt: holds a private key")
    assert second.startswith("notes.md: holds the value of AWS_SECRET_ACCESS_KEY")
    assert "planted" not in second


def test_size_is_looked_at_before_anything_is_read_and_the_biggest_are_named(tmp_path: Path) -> None:
    for name, size in (("huge.bin", 3_000_000_000), ("big.bin", 2_000_000), ("small.bin", 10)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    with pytest.raises(ValueError, match=r"3 files with 3002\.0 MB, but --max-size is 100 MB: .*gitignore") as error:
        pack(tmp_path)
    assert str(error.value).splitlines()[1:3] == ["huge.bin: 3000.0 MB", "big.bin: 2.0 MB"]
    (tmp_path / "huge.bin").unlink()
    assert len(pack(tmp_path, limit=2.1).files) == 2


def test_what_is_allowed_has_to_be_among_the_files_that_go(tmp_path: Path) -> None:
    write(tmp_path, "a.py", "ignored.py", ".gitignore", content="ignored.py\n")
    for name in ("nosuch", "ignored.py"):
        with pytest.raises(ValueError, match=f"^--allow {name}: no such file goes along; give its path below "):
            pack(tmp_path, allowed=[name])


def test_nothing_to_send_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no files to send"):
        pack(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        pack(tmp_path / "gone")
    with pytest.raises(ValueError, match="no such folder"):
        pack(tmp_path / ("a" * 300))
