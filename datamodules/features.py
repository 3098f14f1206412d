"""Vision features of a frozen encoder, computed once per image and kept on disk.

A cache folder belongs to one way of computing features: `key.json` holds what decides them (encoder, hash of its
weights, layer, preprocessing, dtype), and a folder made another way is refused. Features are stored in blocks, each a
safetensors file that appears in full or not at all, named by the images in it; so a stopped build goes on where it was,
and several processes may fill one folder. Blocks are memory-mapped: reading a feature copies its bytes and no more.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import safetensors
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from ablate.errors import UserError
from datamodules.errors import BadSample
from datamodules.files import atomic_file
from datamodules.images import MAX_PIXELS, file_sha256, read_image

KEY_NAME = "key.json"
TENSOR_NAME = "features"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}

ImageLoader = Callable[[], Image.Image]


class FeatureStore(Protocol):
    """Where a batch gets its features from."""

    def __contains__(self, image_sha256: object) -> bool: ...

    def get(self, hashes: Sequence[str]) -> Tensor:
        """(n, h, w, c) for n image hashes."""
        ...


@dataclass
class BuildReport:
    """What `FeatureCache.build` did.

    Attributes:
        encoded, present: images computed now, and found in the cache already.
        skipped: images that could not be decoded, with the reason.
        encode_seconds: loading, preprocessing and encoding; write_seconds: writing blocks.
    """

    encoded: int = 0
    present: int = 0
    skipped: list[BadSample] = field(default_factory=list)
    encode_seconds: float = 0.0
    write_seconds: float = 0.0


class FeatureCache:
    """A folder of features, by the hash of the image file.

    Args:
        folder: made if needed.
        key_fields: what decides the features besides the image; JSON values. Any difference is another cache.
        dtype: as stored, and as `get` returns.

    Raises:
        UserError: the folder's features were computed another way (the message says which fields differ), or a block is
            damaged.
    """

    def __init__(self, folder: Path | str, key_fields: dict[str, Any], dtype: torch.dtype = torch.float16):
        self.folder = Path(folder)
        self.dtype = dtype
        if dtype not in DTYPES.values():
            raise UserError(f"Features cannot be stored as {dtype}; choose one of {', '.join(DTYPES)}.")
        self.key_fields = json.loads(json.dumps(key_fields | {"dtype": str(dtype).removeprefix("torch.")}))
        self._rows: dict[str, tuple[Path, int]] = {}
        self._blocks: dict[Path, np.ndarray] = {}
        self._claim()
        self.refresh()

    @property
    def key(self) -> str:
        """SHA-256 of the key fields."""
        return hashlib.sha256(json.dumps(self.key_fields, sort_keys=True).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, image_sha256: object) -> bool:
        return image_sha256 in self._rows

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_blocks": {}}  # a worker process maps the files itself

    def missing(self, hashes: Iterable[str]) -> list[str]:
        """Those of the images that are not in the cache, each once, in order."""
        return [image for image in dict.fromkeys(hashes) if image not in self._rows]

    def get(self, hashes: Sequence[str]) -> Tensor:
        """Features (n, h, w, c) of n images, in order; a copy, in `dtype`.

        Raises:
            UserError: an image is not in the cache.
        """
        if absent := self.missing(hashes):
            raise UserError(
                f"The feature cache {self.folder} lacks {len(absent)} of {len(set(hashes))} images (first: "
                f"{absent[0]}). Run again with the cache built from these images."
            )
        views = [self._block(path)[row] for path, row in (self._rows[image] for image in hashes)]
        # NumPy copies: PyTorch would use several threads for each row of 100 KB, and they cost more than the copy.
        return torch.from_numpy(np.stack(views)).view(self.dtype)

    def build(
        self,
        images: Iterable[tuple[str, ImageLoader]],
        encode: Callable[[list[Image.Image]], Tensor],
        progress: Callable[[int], None] = lambda _: None,
        *,
        batch_size: int = 32,
        block_size: int = 256,
        on_bad_sample: Literal["error", "skip"] = "error",
    ) -> BuildReport:
        """Compute what is missing. Stopped at any moment, the blocks written so far stay and are not computed again.

        Args:
            images: (hash of the image file, function that decodes it).
            encode: images -> (n, h, w, c), any float dtype and device.
            progress: called with the number of images done, those found in the cache included.
            batch_size: images given to `encode` at once.
            block_size: images in a file.
            on_bad_sample: what to do where a loader raises `BadSample`.

        Raises:
            BadSample: an image cannot be decoded and `on_bad_sample` is "error".
            UserError: a block cannot be written, such as on a full disk.
        """
        report = BuildReport()
        todo = self._not_present(images, report, progress)
        hashes: list[str] = []
        features: list[Tensor] = []
        while group := list(islice(todo, batch_size)):
            start = time.perf_counter()
            loaded = _load_images(group, report, on_bad_sample)
            if loaded:
                hashes += [image_sha256 for image_sha256, _ in loaded]
                features.append(self._encode(encode, [image for _, image in loaded]))
            report.encode_seconds += time.perf_counter() - start
            if len(hashes) >= block_size:
                self._write_block(hashes, features, report)
                hashes, features = [], []
            progress(len(group))
        if hashes:
            self._write_block(hashes, features, report)
        return report

    def refresh(self) -> None:
        """Look for blocks that other processes have written since."""
        known = {path for path, _ in self._rows.values()}
        for path in sorted(self.folder.glob("block-*.safetensors")):
            if path not in known:
                self._add_block(path)

    def _not_present(
        self, images: Iterable[tuple[str, ImageLoader]], report: BuildReport, progress: Callable[[int], None]
    ) -> Iterable[tuple[str, ImageLoader]]:
        seen: set[str] = set()
        for image_sha256, loader in images:
            if image_sha256 in self._rows or image_sha256 in seen:
                report.present += 1
                progress(1)
                continue
            seen.add(image_sha256)
            yield image_sha256, loader

    @torch.no_grad()
    def _encode(self, encode: Callable[[list[Image.Image]], Tensor], images: list[Image.Image]) -> Tensor:
        features = encode(images)
        assert features.dim() == 4, f"encode gave {tuple(features.shape)}, expected (n, h, w, c)"
        assert len(features) == len(images), f"encode gave {len(features)} features for {len(images)} images"
        stored = features.to("cpu", self.dtype)
        if not torch.isfinite(stored).all():
            raise UserError(
                f"The encoder's features are not finite in {self.key_fields['dtype']} (largest: "
                f"{features.abs().max().item():.4g}). Store them in bfloat16 or float32."
            )
        return stored

    def _write_block(self, hashes: list[str], features: list[Tensor], report: BuildReport) -> None:
        start = time.perf_counter()
        name = hashlib.sha256("".join(hashes).encode()).hexdigest()[:24]
        path = self.folder / f"block-{name}.safetensors"
        data = safetensors.torch.save(
            {TENSOR_NAME: torch.cat(features).contiguous()}, {"images": json.dumps(hashes), "key": self.key}
        )
        with atomic_file(path) as file:
            file.write(data)
        self._add_block(path)
        report.encoded += len(hashes)
        report.write_seconds += time.perf_counter() - start

    def _add_block(self, path: Path) -> None:
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata()
            hashes, key = json.loads(metadata["images"]), metadata["key"]
        except Exception as error:  # safetensors raises its own error, which is no subclass of anything narrower
            raise UserError(
                f"The feature block {path} is damaged ({error}). Delete it; only its images are computed again."
            ) from None
        if key != self.key:
            raise UserError(f"The feature block {path} belongs to another cache. Move it away.")
        self._rows |= {image: (path, row) for row, image in enumerate(hashes)}

    def _block(self, path: Path) -> np.ndarray:
        """(n, h, w, c) bits of a block, memory-mapped; integers, as NumPy has no bfloat16."""
        if path not in self._blocks:
            tensor = safetensors.torch.load_file(path)[TENSOR_NAME]
            self._blocks[path] = tensor.view(torch.int32 if self.dtype == torch.float32 else torch.int16).numpy()
        return self._blocks[path]

    def _claim(self) -> None:
        """Write the key of a new cache, or check that of an old one."""
        path = self.folder / KEY_NAME
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                with atomic_file(path) as file:
                    file.write(json.dumps(self.key_fields, indent=2, sort_keys=True).encode())
            found = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder} cannot be used as a feature cache: {error}") from None
        if found == self.key_fields:
            return
        fields = sorted(found.keys() | self.key_fields.keys()) if isinstance(found, dict) else []
        differs = [
            f"{name}: {found.get(name)!r} there, {self.key_fields.get(name)!r} here"
            for name in fields
            if found.get(name) != self.key_fields.get(name)
        ]
        raise UserError(
            f"The feature cache {self.folder} was computed another way ({'; '.join(differs) or 'unreadable key'}). "
            "Choose another folder."
        )


def image_items(paths: Iterable[Path | str], *, max_pixels: int = MAX_PIXELS) -> Iterable[tuple[str, ImageLoader]]:
    """Image files as `FeatureCache.build` takes them."""
    for path in paths:
        yield file_sha256(path), lambda path=path: read_image(path, max_pixels=max_pixels)


def estimate_bytes(images: int, grid: tuple[int, int], dim: int, dtype: torch.dtype = torch.float16) -> int:
    """Disk that the features of so many different images take: images x height x width x channels x bytes of dtype."""
    return images * math.prod(grid) * dim * dtype.itemsize


def break_even_epochs(encode_seconds: float, read_seconds: float, build_seconds: float | None = None) -> float:
    """Epochs over the same images, of all runs together, after which a cache has paid for itself.

    Args:
        encode_seconds: decoding and encoding the images of one epoch.
        read_seconds: reading their features instead.
        build_seconds: filling the cache; `encode_seconds` where not known.

    Returns:
        build / (encode - read); infinity where reading is no faster, which happens with small encoders on slow disks.
    """
    saved = encode_seconds - read_seconds
    build = encode_seconds if build_seconds is None else build_seconds
    return build / saved if saved > 0 else math.inf


def _load_images(
    group: Sequence[tuple[str, ImageLoader]], report: BuildReport, on_bad_sample: Literal["error", "skip"]
) -> list[tuple[str, Image.Image]]:
    loaded = []
    for image_sha256, loader in group:
        try:
            loaded.append((image_sha256, loader()))
        except BadSample as bad:
            if on_bad_sample == "error":
                raise
            report.skipped.append(bad)
    return loaded
