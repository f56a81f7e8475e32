"""Data sets that everybody has the same copy of: their content is known before any file is read."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import model_validator

from tasks.component import Placement, kind_of
from tasks.data import Dataset, Signature
from tasks.data.prepared import Labelled, digest_of, is_prepared


class Published(Dataset):
    """A data set of known shape and statistics."""

    known: ClassVar[Signature]
    """Before any partition; mean and std are those of the training part."""

    def whole(self) -> Signature:
        """Shape, classes and training statistics, without reading the data."""
        return self.known

    @model_validator(mode="after")
    def _partition_fits(self) -> Self:
        self.signature()
        return self


class Downloaded(Published):
    """A data set in files that the user has, or lets torchvision download."""

    root: Annotated[Path | None, Placement()] = None
    """Folder with the files, either themselves or where torchvision puts them, gzipped or not. If not given: the folder
    named by `HEDGEROW_DATA` on the machine that reads them, else `~/.cache/hedgerow/datasets`."""
    download: Annotated[bool, Placement()] = False
    """Whether to download missing files into `root`."""

    folder: ClassVar[str]
    """Below `root`, where torchvision keeps the files."""
    torchvision: ClassVar[str]
    """Name of the class in `torchvision.datasets`."""
    checksums: ClassVar[Mapping[str, str]]
    """MD5 of every file's content, not gzipped."""

    def fingerprint(self) -> str:
        """A digest of the published checksums; the files are compared with them when they are decoded.

        Raises:
            ValueError: files are missing, are not to be downloaded, and were never decoded on this machine.
        """
        fingerprint = digest_of(self.checksums)
        if not self.download and (missing := self._missing()) and not is_prepared(fingerprint):
            raise ValueError(self._how_to_get(missing))
        return fingerprint

    def read(self) -> tuple[Labelled, Labelled]:
        """Decodes the files, after downloading them if need be.

        Raises:
            ValueError: a file is missing, or its content is not the published one.
        """
        if self.download and self._missing():
            self.fetch(self._root())
        if missing := self._missing():
            raise ValueError(self._how_to_get(missing))
        return self.decode({name: self._content(name, path) for name, path in self._found().items()})

    def fetch(self, root: Path) -> None:
        """Downloads the files to where torchvision keeps them below `root`."""
        getattr(importlib.import_module("torchvision.datasets"), self.torchvision)(root, download=True)

    def decode(self, files: Mapping[str, bytes]) -> tuple[Labelled, Labelled]:
        """The training and the test part out of the content of the files, which has been checked."""
        raise NotImplementedError

    def _root(self) -> Path:
        return (self.root or Path(os.environ.get("HEDGEROW_DATA") or "~/.cache/hedgerow/datasets")).expanduser()

    def _found(self) -> dict[str, Path]:
        """Where each file is, of those that are there."""
        folders = (self._root() / self.folder, self._root())
        found = {}
        for name in self.checksums:
            candidates = (folder / file for folder in folders for file in (name, f"{name}.gz"))
            if path := next((path for path in candidates if path.is_file()), None):
                found[name] = path
        return found

    def _missing(self) -> list[str]:
        found = self._found()
        return [name for name in self.checksums if name not in found]

    def _content(self, name: str, path: Path) -> bytes:
        content = path.read_bytes()
        if path.suffix == ".gz":
            try:
                content = gzip.decompress(content)
            except (OSError, EOFError, zlib.error) as problem:
                raise ValueError(f"{path}: damaged ({problem}); delete it and get it again") from problem
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != self.checksums[name]:
            raise ValueError(
                f"{path}: its content is not that of the published {kind_of(type(self))} file (MD5 "
                f"{self.checksums[name]}); give `root` another folder if another data set is kept there, else "
                "get it again"
            )
        return content

    def _how_to_get(self, missing: list[str]) -> str:
        return (
            f"{kind_of(type(self))}: {self._root() / self.folder} lacks {', '.join(missing)}; put the files there, set "
            "`root` or HEDGEROW_DATA to a folder that holds them, or set `download: true`"
        )
