"""What of a working tree goes to a cluster: what git would keep, packed so that its content names it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

from cluster import secret

LIMIT = 100
"""MB of files that are sent unless more is asked for: Ray's job server takes no package over 105 MB."""
IGNORE_FILES = (".gitignore", ".rayignore")
"""Both are read in every folder; the second, of the same form, is for what git keeps and a cluster does not need."""
NEVER = (
    ".git", "__pycache__", "*.pyc", "node_modules", "hedgerow-store", "hedgerow-results", ".hedgerow-jobs", ".DS_Store",
)  # fmt: skip
"""Names of what goes from no tree, whatever git keeps."""
OUR_OWN = (".venv*", "*.egg-info", ".hypothesis", ".*_cache", "build", "dist", "tests", "wandb", "hedgerow-*")
"""Names of what is in hedgerow's own working tree, and is not needed to install it."""
LEFT_OUT = (*NEVER, *OUR_OWN, *secret.FILES)
"""What of hedgerow's own working tree goes to no node; read alike by rsync, by Docker behind `**/`, and by git."""
ENVIRONMENTS = ("pyvenv.cfg", "conda-meta")
"""What a folder holds that is a virtual environment."""
PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY( BLOCK)?-----")
_NEVER = GitIgnoreSpec.from_lines([*NEVER, "/wandb/"])
SHOWN = 10
"""Lines of a kind in an error."""


@dataclass(frozen=True)
class Package:
    """The files of a tree as a ZIP archive."""

    digest: str
    """SHA-256 over names, modes and contents: the same for the same files, whatever packed them."""
    data: bytes
    files: tuple[str, ...]
    """Paths below the tree, sorted."""


@dataclass(frozen=True)
class _File:
    path: str
    size: int
    executable: bool


def pack(
    root: Path,
    limit: float = LIMIT,
    allowed: Collection[str] = (),
    without: Collection[Path] = (),
    secrets: Mapping[str, str] | None = None,
) -> Package:
    """Packs a tree, less what its ignore files name.

    Args:
        root: the tree's folder.
        limit: MB that the files may have together, looked at before any is read.
        allowed: paths below the tree of files that may go although they look like secrets.
        without: folders that stay here, such as a store inside the tree.
        secrets: values that no file may hold, by the name of what they are.

    Raises:
        ValueError: there is nothing to send, a symlink, a device or what looks like a secret, or too much, or what is
            allowed is not there; a line each.
    """
    root = Path(os.path.realpath(root))
    if not os.path.isdir(root):  # a name too long is no folder either
        raise ValueError(f"--tree {root}: no such folder")
    files, refused = _select(root, {folder.resolve() for folder in without})
    refused += [
        f"{file.path}: looks like a secret{_way_out(file.path)}"
        for file in files
        if file.path not in allowed and secret.is_secret_file(file.path)
    ]
    going = {file.path for file in files}
    refused += [
        f"--allow {path}: no such file goes along; give its path below {root}" for path in allowed if path not in going
    ]
    _refuse(refused)
    if not files:
        raise ValueError(f"--tree {root}: there are no files to send; `--tree none` sends none")
    _check_size(files, limit)
    return _zip(root, files, allowed, {name: value.encode() for name, value in (secrets or {}).items()})


def _select(root: Path, without: Collection[Path]) -> tuple[list[_File], list[str]]:
    """The files that would be sent, and a line for each entry that must not be there."""
    files: list[_File] = []
    refused: list[str] = []

    def visit(folder: Path, ignored: _Ignored) -> None:
        ignored = ignored.inside(folder)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            refused.append(f"{folder.relative_to(root)}: cannot be read: {error.strerror}")
            return
        for entry in entries:
            path = Path(entry.path)
            is_folder = entry.is_dir(follow_symlinks=False)
            if ignored.holds(path, is_folder) or (is_folder and (path in without or _is_environment(path))):
                continue
            if is_folder:
                visit(path, ignored)
                continue
            name = path.relative_to(root).as_posix()
            if line := _unfit(name, entry):
                refused.append(line)
            else:
                found = entry.stat(follow_symlinks=False)
                files.append(_File(name, found.st_size, bool(found.st_mode & stat.S_IXUSR)))

    visit(root, _Ignored.above(root))
    return sorted(files, key=lambda file: file.path), refused


@dataclass(frozen=True)
class _Ignored:
    """What the ignore files from the repository's root down to a folder say, the deepest first."""

    root: Path
    rules: tuple[tuple[Path, GitIgnoreSpec], ...] = ()

    @classmethod
    def above(cls, root: Path) -> _Ignored:
        """The rules that hold in a tree although they stand above it, in the git repository that it is a part of."""
        repository = next((folder for folder in (root, *root.parents) if (folder / ".git").exists()), root)
        rules = _rules(repository, repository / ".git" / "info" / "exclude")
        ignored = cls(root, rules)
        for folder in reversed([folder for folder in root.parents if folder.is_relative_to(repository)]):
            ignored = ignored.inside(folder)
        return ignored

    def inside(self, folder: Path) -> _Ignored:
        """These rules and those of one more folder."""
        own = [rule for name in reversed(IGNORE_FILES) for rule in _rules(folder, folder / name)]
        return _Ignored(self.root, (*own, *self.rules))

    def holds(self, path: Path, is_folder: bool) -> bool:
        """Whether a path is ignored: the deepest file that says anything of it is right."""
        slash = "/" if is_folder else ""
        if _NEVER.match_file(path.relative_to(self.root).as_posix() + slash):
            return True
        for folder, spec in self.rules:
            said = spec.check_file(path.relative_to(folder).as_posix() + slash).include
            if said is not None:
                return said
        return False


def _rules(folder: Path, file: Path) -> tuple[tuple[Path, GitIgnoreSpec], ...]:
    if not file.is_file():
        return ()
    return ((folder, GitIgnoreSpec.from_lines(file.read_text(errors="replace").splitlines())),)


def _is_environment(folder: Path) -> bool:
    return any((folder / mark).exists() for mark in ENVIRONMENTS)


def _unfit(name: str, entry: os.DirEntry[str]) -> str | None:
    if entry.is_symlink():
        target = os.readlink(entry.path)
        return f"{name}: a symlink (to {target}) is not sent: put the file there itself, or ignore it in .gitignore"
    if not entry.is_file(follow_symlinks=False):
        return f"{name}: neither a file nor a folder; ignore it in .gitignore"
    if not name.isprintable():
        return f"{name!r}: a name with characters that cannot be printed"
    return None


def _way_out(path: str) -> str:
    return f": ignore it in .gitignore, or say `--allow {path}`"


def _refuse(lines: list[str]) -> None:
    if lines:
        more = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        raise ValueError("\n".join(lines[:SHOWN] + more))


def _check_size(files: list[_File], limit: float) -> None:
    total = sum(file.size for file in files)
    if total <= limit * 1e6:
        return
    biggest = sorted(files, key=lambda file: -file.size)[:SHOWN]
    raise ValueError(
        "\n".join(
            [
                f"--tree: {len(files)} files with {total / 1e6:.1f} MB, but --max-size is {limit:g} MB: name in "
                ".gitignore, or in .rayignore, what the cluster does not need; the biggest are",
                *(f"{file.path}: {file.size / 1e6:.1f} MB" for file in biggest),
            ]
        )
    )


def _zip(root: Path, files: list[_File], allowed: Collection[str], secrets: Mapping[str, bytes]) -> Package:
    """Reads each file once: what is hashed and searched is what is sent."""
    names: list[list[str]] = []
    refused: list[str] = []
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            data = _read(root / file.path)
            if file.path not in allowed:
                refused += [f"{file.path}: holds {what}{_way_out(file.path)}" for what in _found(data, secrets)]
            mode = 0o755 if file.executable else 0o644
            entry = zipfile.ZipInfo(file.path)  # its date is 1980, whatever the clock says
            entry.external_attr = (stat.S_IFREG | mode) << 16
            entry.create_system = 3  # Unix, or the modes would not be read
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
            names.append([file.path, oct(mode), hashlib.sha256(data).hexdigest()])
    _refuse(refused)
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()
    return Package(digest, made.getvalue(), tuple(file.path for file in files))


def _read(path: Path) -> bytes:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:  # no symlink since it was looked at
            return file.read()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None


def _found(data: bytes, secrets: Mapping[str, bytes]) -> Iterator[str]:
    if PRIVATE_KEY.search(data):
        yield "a private key"
    for name, value in secrets.items():
        if value in data:
            yield f"the value of {name}"
