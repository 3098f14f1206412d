"""Vision features of a frozen encoder, computed once per image and kept on disk.

A cache folder belongs to one way of computing features: `key.json` holds what decides them (encoder, hash of its
weights, layer, preprocessing, dtype), and a folder made another way is refused. Features are stored in blocks, each a
safetensors file that appears in full or not at all, named by the images in it.

Several processes may fill one folder. The images are cut into groups, in an order that all of them share; a process
takes a group whose lock is free, and at the end waits for the groups of others. A process that dies gives its lock
back, and its group is taken by another, or by the next attempt: nothing is lost, and nothing computed twice.

Blocks are memory-mapped: reading a feature copies its bytes and no more. Stored as int8, every patch has a scale of its
own (its largest magnitude / 127), so that no value is off by more than half a scale. What rounding cost, in any dtype,
is measured as features are stored and kept with them (`FeatureCache.error`).
"""

import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import safetensors
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from ablate.core.errors import UserError
from ablate.core.files import atomic_file, known_sha256
from ablate.core.locks import exclusive
from datamodules.errors import BadSample
from datamodules.images.decode import MAX_PIXELS, RGB_RULE, read_image

KEY_NAME = "key.json"
LOCKS_NAME = ".locks"
TENSOR_NAME, SCALES_NAME = "features", "scales"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "int8": torch.int8}
# NumPy has no bfloat16: bits are read as integers of the same size.
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32}
_INT8_MAX = 127
# A block is held in memory until it is written.
BLOCK_BYTES = 64 << 20

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
        encoded, present: images computed now by this process, and found in the cache or left to other processes.
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
        dtype: as stored, and as `get` returns; int8 is returned as float32.

    Raises:
        UserError: the folder's features were computed another way (the message says which fields differ), or a block is
            damaged.
    """

    def __init__(self, folder: Path | str, key_fields: dict[str, Any], dtype: torch.dtype = torch.float16):
        self.folder = Path(folder)
        self.dtype = dtype
        if dtype not in DTYPES.values():
            raise UserError(f"Features cannot be stored as {dtype}; choose one of {', '.join(DTYPES)}.")
        fields = key_fields | {"dtype": str(dtype).removeprefix("torch."), "rgb_rule": RGB_RULE}
        self.key_fields = json.loads(json.dumps(fields))
        self._rows: dict[str, tuple[Path, int]] = {}
        self._blocks: dict[Path, tuple[np.ndarray, np.ndarray | None]] = {}
        self._squares: dict[Path, tuple[float, float]] = {}  # of each block: of the errors, of the features
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
        places = [self._rows[image] for image in hashes]
        # NumPy copies: PyTorch would use several threads for each row of 100 KB, and they cost more than the copy.
        stored = torch.from_numpy(np.stack([self._block(path)[0][row] for path, row in places])).view(self.dtype)
        if self.dtype != torch.int8:
            return stored
        scales: list[Any] = [self._block(path)[1] for path, _ in places]
        return stored * torch.from_numpy(np.stack([scale[row] for scale, (_, row) in zip(scales, places, strict=True)]))

    @property
    def error(self) -> float:
        """What storing cost, over all features here: root mean square of the error / that of the features."""
        errors = sum(errors for errors, _ in self._squares.values())
        features = sum(features for _, features in self._squares.values())
        return math.sqrt(errors / features) if features else 0.0

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
        """Compute what is missing; other processes may do the same and share the work.

        Stopped at any moment, the blocks written so far stay and are not computed again.

        Args:
            images: (hash of the image file, function that decodes it), in the same order in every process.
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
        items = list(images)
        unique = list(dict(items).items())
        progress(len(items) - len(unique))
        report.present += len(items) - len(unique)
        groups = [unique[start : start + block_size] for start in range(0, len(unique), block_size)]
        taken = []
        for group in groups:
            if self.missing(image for image, _ in group):
                with ExitStack() as lock:
                    try:
                        lock.enter_context(exclusive(self._lock_of(group), busy="taken"))
                    except UserError:
                        taken.append(group)
                        continue
                    self._build_group(group, encode, report, batch_size, on_bad_sample)
            else:
                report.present += len(group)
                self._lock_of(group).unlink(missing_ok=True)  # of a process killed once its block was written
            progress(len(group))
        for group in taken:  # done by now, or their process has died
            with exclusive(self._lock_of(group)):
                self._build_group(group, encode, report, batch_size, on_bad_sample)
            progress(len(group))
        return report

    def refresh(self) -> None:
        """Look for blocks that other processes have written since."""
        known = {path for path, _ in self._rows.values()}
        for path in sorted(self.folder.glob("block-*.safetensors")):
            if path not in known:
                self._add_block(path)

    def _lock_of(self, group: Sequence[tuple[str, ImageLoader]]) -> Path:
        return self.folder / LOCKS_NAME / _digest([image for image, _ in group])

    def _build_group(
        self,
        group: Sequence[tuple[str, ImageLoader]],
        encode: Callable[[list[Image.Image]], Tensor],
        report: BuildReport,
        batch_size: int,
        on_bad_sample: Literal["error", "skip"],
    ) -> None:
        """Compute what is missing of a group whose lock is held."""
        name = self._lock_of(group).name
        for left_over in self.folder.glob(f".block-{name}-*.tmp"):  # of a process that was killed: the lock is ours
            left_over.unlink()
        self.refresh()  # others may have done it
        missing = set(self.missing(image for image, _ in group))
        todo = [item for item in group if item[0] in missing]
        report.present += len(group) - len(todo)
        hashes: list[str] = []
        features: list[Tensor] = []
        start = time.perf_counter()
        for first in range(0, len(todo), batch_size):
            loaded = _load_images(todo[first : first + batch_size], report, on_bad_sample)
            if loaded:
                hashes += [image_sha256 for image_sha256, _ in loaded]
                features.append(self._encode(encode, [image for _, image in loaded]))
        report.encode_seconds += time.perf_counter() - start
        if hashes:
            self._write_block(name, hashes, torch.cat(features), report)
        self._lock_of(group).unlink(missing_ok=True)  # whoever still waits for it finds nothing to do

    @torch.no_grad()
    def _encode(self, encode: Callable[[list[Image.Image]], Tensor], images: list[Image.Image]) -> Tensor:
        features = encode(images)
        assert features.dim() == 4, f"encode gave {tuple(features.shape)}, expected (n, h, w, c)"
        assert len(features) == len(images), f"encode gave {len(features)} features for {len(images)} images"
        features = features.to("cpu", torch.float32)
        stored = features if self.dtype == torch.int8 else features.to(self.dtype)
        if not torch.isfinite(stored).all():
            if torch.isnan(features).any():
                raise UserError(
                    "The encoder's features are no numbers (nan): its weights or its preprocessing are damaged. Look "
                    "at encoder.weights and encoder.preprocessing."
                )
            raise UserError(
                f"The encoder's features are not finite in {self.key_fields['dtype']} (largest: "
                f"{features.abs().max().item():.4g}). Store them in bfloat16 or float32."
            )
        return features

    def _write_block(self, group: str, hashes: list[str], features: Tensor, report: BuildReport) -> None:
        start = time.perf_counter()
        tensors, restored = _stored(features, self.dtype)
        squares = [float((restored - features).double().square().sum()), float(features.double().square().sum())]
        path = self.folder / f"block-{group}-{_digest(hashes)}.safetensors"
        data = safetensors.torch.save(
            tensors, {"images": json.dumps(hashes), "key": self.key, "squares": json.dumps(squares)}
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
            errors, squares = json.loads(metadata["squares"])
        except Exception as error:  # safetensors raises its own error, which is no subclass of anything narrower
            raise UserError(
                f"The feature block {path} is damaged ({error}). Delete it; only its images are computed again."
            ) from None
        if key != self.key:
            raise UserError(f"The feature block {path} belongs to another cache. Move it away.")
        self._rows |= {image: (path, row) for row, image in enumerate(hashes)}
        self._squares[path] = (errors, squares)

    def _block(self, path: Path) -> tuple[np.ndarray, np.ndarray | None]:
        """A block, memory-mapped: the bits (n, h, w, c) as integers, and for int8 the scales (n, h, w, 1)."""
        if path not in self._blocks:
            tensors = safetensors.torch.load_file(path)
            bits = tensors[TENSOR_NAME].view(_BITS[self.dtype.itemsize]).numpy()
            scales = tensors[SCALES_NAME].numpy() if SCALES_NAME in tensors else None
            self._blocks[path] = bits, scales
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
        yield known_sha256(path), functools.partial(read_image, path, max_pixels=max_pixels)


def estimate_bytes(images: int, grid: tuple[int, int], dim: int, dtype: torch.dtype = torch.float16) -> int:
    """Disk that the features of so many different images take: images x height x width x channels x bytes of dtype.

    int8 takes four more for each patch, its scale.
    """
    return images * math.prod(grid) * (dim * dtype.itemsize + 4 * (dtype == torch.int8))


def block_images(bytes_per_image: int, most: int = 256) -> int:
    """Images in a block, so that a process holds `BLOCK_BYTES` of features at most."""
    return max(1, min(most, BLOCK_BYTES // max(1, bytes_per_image)))


def break_even_passes(encode_seconds: float, read_seconds: float, build_seconds: float | None = None) -> float:
    """Passes over the same images, of all runs together, after which a cache has paid for itself.

    Args:
        encode_seconds: decoding and encoding each image once.
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


def _stored(features: Tensor, dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor]:
    """float32 features (n, h, w, c) as a block holds them, and as they will come back."""
    if dtype != torch.int8:
        stored = features.to(dtype)
        return {TENSOR_NAME: stored.contiguous()}, stored.float()
    scales = (features.abs().amax(dim=-1, keepdim=True) / _INT8_MAX).clamp(min=torch.finfo(torch.float32).tiny)
    stored = (features / scales).round().clamp(-_INT8_MAX, _INT8_MAX).to(torch.int8)
    return {TENSOR_NAME: stored.contiguous(), SCALES_NAME: scales.contiguous()}, stored * scales


def _digest(hashes: Sequence[str]) -> str:
    return hashlib.sha256("".join(hashes).encode()).hexdigest()[:24]
