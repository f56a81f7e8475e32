"""Published files read before on this machine: shared by its workers, never stale, and safe to delete.

A file lies under the SHA-256 of its bytes, which the manifest names, so it cannot be out of date; what does not match
its name is dropped. Whatever goes wrong with the folder, the store is read instead.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = "HEDGEROW_CACHE"
CAPACITY = "HEDGEROW_CACHE_GB"
DEFAULT_GB = 10.0
NAME = re.compile(r"[0-9a-f]{64}(\.[0-9a-f]{8})?")
"""A file's SHA-256; with more letters while it is being written."""


@dataclass(frozen=True)
class Cache:
    """A folder of files by their SHA-256, of which the longest unread go first when there are too many."""

    folder: Path
    capacity: int
    """Bytes at most; on a nearly full disk, half of what these files and the free space come to."""

    @classmethod
    def here(cls) -> Cache | None:
        """This user's on this machine, as the environment says: `HEDGEROW_CACHE` (a folder), `HEDGEROW_CACHE_GB`.

        Returns:
            None if it is switched off with 0 gigabytes, or there is no place for it.

        Raises:
            ValueError: the number of gigabytes is none.
        """
        capacity = _capacity(os.environ.get(CAPACITY) or str(DEFAULT_GB))
        try:
            folder = Path(os.environ.get(FOLDER) or "~/.cache/hedgerow").expanduser()
        except RuntimeError:  # a user without a home
            return None
        return cls(folder.absolute() / f"files-{os.geteuid()}", capacity) if capacity else None

    def read(self, digest: str) -> bytes | None:
        """The bytes with this SHA-256, or None if they are not here; damaged ones are removed.

        Args:
            digest: 64 hexadecimal digits.
        """
        path = self.folder / digest
        try:
            data = path.read_bytes()
        except OSError:
            return None
        intact = hashlib.sha256(data).hexdigest() == digest
        with contextlib.suppress(OSError):  # a folder that can only be read
            os.utime(path) if intact else path.unlink()
        return data if intact else None

    def keep(self, digest: str, data: bytes) -> None:
        """Keeps bytes for later readers, if there is room for them.

        Args:
            digest: their SHA-256.
            data: the bytes.
        """
        partial = self.folder / f"{digest}.{secrets.token_hex(4)}"
        try:
            self._make()
            if not self._make_room(len(data)):
                return
            with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
            partial.replace(self.folder / digest)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()

    def _make(self) -> None:
        """Makes the folder, for its owner alone.

        Raises:
            OSError: that cannot be, or it is another's.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = self.folder.lstat()  # a link would lead to a folder in which nothing may be removed
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise PermissionError(f"{self.folder} is not a folder of this user's own")
        if found.st_mode & 0o077:
            self.folder.chmod(0o700)

    def _make_room(self, needed: int) -> bool:
        """Removes the longest unread until `needed` more bytes fit; returns whether they do.

        Abandoned parts of files count too, so they go like the rest.
        """
        files = sorted(self._files())
        used = sum(size for _, size, _ in files)
        allowed = min(self.capacity, (used + shutil.disk_usage(self.folder).free) // 2)
        if needed > allowed:
            return False
        for _, size, path in files:
            if used + needed <= allowed:
                break
            path.unlink(missing_ok=True)
            used -= size
        return True

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        """When each file was last read, its bytes, and where it is."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # another process made room too
                    if NAME.fullmatch(entry.name):
                        found = entry.stat(follow_symlinks=False)
                        yield found.st_mtime_ns, found.st_size, Path(entry.path)


def _capacity(gigabytes: str) -> int:
    try:
        number = float(gigabytes)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError(f"{CAPACITY}: '{gigabytes}' is no number of gigabytes; 0 keeps no files")
    return int(number * 1e9)
