"""Image files in one folder per class."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from tasks.component import Placement
from tasks.data import Dataset, Signature
from tasks.data.prepared import Labelled, digest_of, prepare, remembered

_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class ImageFolder(Dataset):
    """Images in `<root>/train/<class>/` and `<root>/test/<class>/`, the layout of torchvision's ImageFolder.

    Classes are numbered in the order of their names, examples in the order of their paths. Pixels are those that the
    installed Pillow decodes; its JPEG library may differ by a grey level between builds.
    """

    kind: Literal["image-folder"] = "image-folder"

    root: Annotated[Path, Placement()]
    """Folder that holds `train` and `test`."""
    size: int | None = Field(default=None, ge=1)
    """Height and width in pixels: the shorter side is scaled to it, bilinearly, and the centre is cut out. If not
    given, all images must be of one size."""
    colour: Literal["rgb", "grey"] = "rgb"
    """Three channels or one (ITU-R 601-2 luma)."""

    def fingerprint(self) -> str:
        """A digest of all paths below `root`, the bytes of their files, the size and the colour.

        The bytes are read again only if a path, a size or a time of change is another than before.

        Raises:
            ValueError: a folder is missing or holds no images.
        """
        files = self._files("train") + self._files("test")
        listing = hashlib.sha256(str(self._root().resolve()).encode())
        root = self._root()
        for path in files:
            state = os.stat(f"{root}/{path}")  # no `Path`: these lines run for every image whenever a step is named
            listing.update(f"\0{path}\0{state.st_size}\0{state.st_mtime_ns}".encode())
        content = remembered(listing.hexdigest(), lambda: self._digest(files))
        return digest_of({"content": content, "size": self.size, "colour": self.colour})

    def whole(self) -> Signature:
        """Shape, classes and training statistics; decodes the images if that has not been done on this machine.

        Raises:
            ValueError: the images are missing, damaged or of different sizes.
        """
        arrays = prepare(self.fingerprint(), self.read)
        _, channels, height, width = arrays.train.images.shape
        return Signature(channels, height, width, len(self._class_names()), arrays.mean, arrays.std)

    def read(self) -> tuple[Labelled, Labelled]:
        """Decodes all images.

        Raises:
            ValueError: an image is damaged or of another size than the first, or test has a class that train lacks.
        """
        return self._decoded("train"), self._decoded("test")

    def _root(self) -> Path:
        return self.root.expanduser()

    def _class_names(self) -> list[str]:
        folder = self._root() / "train"
        if not folder.is_dir():
            raise ValueError(
                f"{folder}: no such folder; image-folder expects train/<class>/ and test/<class>/ in `root`"
            )
        return _folders_in(folder)

    def _files(self, part: Literal["train", "test"]) -> list[str]:
        """Paths of the images relative to `root`, with slashes, sorted by class and then by path."""
        found: list[str] = []
        classes, folder = self._class_names(), self._root() / part
        if folder.is_dir() and (unknown := set(_folders_in(folder)) - set(classes)):
            raise ValueError(f"{folder / min(unknown)}: not a class of {self._root() / 'train'}")
        for name in classes:
            paths = _images_below(self._root(), f"{part}/{name}")
            if part == "train" and not paths:
                raise ValueError(f"{folder / name}: no images; allowed: {', '.join(_SUFFIXES)}")
            found.extend(sorted(paths))
        if not found:
            raise ValueError(f"{folder}: no images; image-folder expects {part}/<class>/*: {', '.join(_SUFFIXES)}")
        return found

    def _digest(self, files: list[str]) -> str:
        total = hashlib.sha256()
        for path in files:
            content = hashlib.sha256((self._root() / path).read_bytes()).hexdigest()
            total.update(f"{path}\0{content}\0".encode())
        return total.hexdigest()

    def _decoded(self, part: Literal["train", "test"]) -> Labelled:
        paths = self._files(part)
        number = {name: index for index, name in enumerate(self._class_names())}
        first = self._pixels(paths[0])
        images = np.empty((len(paths), *first.shape), dtype=np.uint8)
        for index, path in enumerate(paths):
            pixels = self._pixels(path)
            if pixels.shape != first.shape:
                raise ValueError(
                    f"{self._root() / path}: {_extent(pixels)} pixels where {paths[0]} has {_extent(first)}; set "
                    "`size` to scale and crop all images to one size"
                )
            images[index] = pixels
        return Labelled(images, np.array([number[path.split("/")[1]] for path in paths], dtype=np.int64))

    def _pixels(self, path: str) -> NDArray[np.uint8]:
        """(C, H, W)."""
        try:
            with Image.open(self._root() / path) as file:
                image = file.convert("RGB" if self.colour == "rgb" else "L")
        except (OSError, SyntaxError, ValueError) as problem:  # Pillow reports a broken PNG as a SyntaxError
            raise ValueError(f"{self._root() / path}: not a readable image ({problem})") from problem
        if self.size is not None:
            image = _centre(image, self.size)
        pixels = np.asarray(image, dtype=np.uint8)
        return pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None]


def _folders_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())


def _images_below(root: Path, folder: str) -> list[str]:
    """Paths relative to `root`, with slashes."""
    below = str(root / folder)
    return [
        f"{folder}{inner[len(below) :].replace(os.sep, '/')}/{file}"
        for inner, _, files in os.walk(below, followlinks=True)
        for file in files
        if file.lower().endswith(_SUFFIXES)
    ]


def _centre(image: Image.Image, size: int) -> Image.Image:
    width, height = (round(side * size / min(image.size)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _extent(pixels: NDArray[np.uint8]) -> str:
    return f"{pixels.shape[2]}x{pixels.shape[1]}"
