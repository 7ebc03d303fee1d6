"""GGUF files: metadata and tensors of one file, or of all parts of a split one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, ReaderTensor
from gguf.quants import dequantize

from isojax.models.fields import LARGEST, is_positive, printed, require, short
from isojax.models.split_files import parts


class GgufFile:
    """The metadata and the tensors of a file; its methods check what they read.

    Attributes:
        source: of the metadata, for messages.
        tensors: by name, each with the file it is in.
    """

    def __init__(self, path: str | Path) -> None:
        """Open a file, and the other parts of it.

        Raises:
            FileNotFoundError: the file or one of its parts is missing.
            ValueError: a file is damaged, or the parts are not of one model.
        """
        given = Path(path)
        self.source = str(path)
        self.tensors: dict[str, tuple[ReaderTensor, str]] = {}
        if not given.is_file():
            raise FileNotFoundError(f"{path}: no such file.")
        paths = parts(given)
        self._readers = [_open(str(part)) for part in paths]
        self._check_parts(given, paths)
        for reader, part in zip(self._readers, paths, strict=True):
            for tensor in reader.tensors:
                if tensor.name in self.tensors:
                    raise ValueError(f"{part}: tensor {printed(tensor.name)} is there twice.")
                self.tensors[tensor.name] = (tensor, str(part))
        total = self._of(self._readers[0], "split.tensors.count")
        if total is not None and total != len(self.tensors):
            raise ValueError(
                f"{self.source}: split.tensors.count must be {len(self.tensors)}, the tensors of "
                f"all parts, got {short(total)}."
            )

    def _check_parts(self, given: Path, paths: Sequence[Path]) -> None:
        for number, (reader, path) in enumerate(zip(self._readers, paths, strict=True)):
            count, own = (self._of(reader, f"split.{key}") for key in ("count", "no"))
            if len(paths) == 1 and count in (None, 0, 1):
                continue
            if len(paths) == 1:
                raise ValueError(
                    f"{given}: is one part of a file split in {short(count)}; the parts must be "
                    "in its folder and be named ...-00001-of-00002.gguf and so on."
                )
            if (count, own) != (len(paths), number):
                raise ValueError(
                    f"{path}: must be part {number} of {len(paths)}, counted from 0, by its name; "
                    f"split.no={short(own)} and split.count={short(count)} say otherwise."
                )

    def get(self, key: str) -> Any:
        """A field of the metadata, None where it is absent."""
        return self._of(self._readers[0], key)

    def _of(self, reader: GGUFReader, key: str) -> Any:
        field = reader.get_field(key)
        try:
            return None if field is None else field.contents()
        except (ValueError, LookupError) as error:
            raise ValueError(f"{self.source}: {key} is not readable ({error}).") from None

    def number(self, key: str, default: Any = None, kind: type = int) -> Any:
        """A field that must be a number above zero."""
        value = self.get(key)
        value = default if value is None else value
        right = is_positive(value) and (kind is float or isinstance(value, int))
        if not right or kind is int and value > LARGEST:
            raise ValueError(
                f"{self.source}: {key} must be a positive {kind.__name__}, got {short(value)}."
            )
        return kind(value)

    def text(self, key: str) -> str | None:
        """An optional field that must be text."""
        value = self.get(key)
        if not isinstance(value, str | None):
            raise ValueError(f"{self.source}: {key} must be text, got {short(value)}.")
        return value

    def require(self, key: str, allowed: tuple[Any, ...]) -> None:
        """Refuse a field with a value that this decoder does not support."""
        require(self.source, key, self.get(key), (*allowed, None))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, rows first."""
        return tuple(int(n) for n in reversed(self.tensors[name][0].shape))

    def read(self, name: str) -> np.ndarray:
        """The array of a tensor, dequantized where it is quantized."""
        tensor, source = self.tensors[name]
        try:
            return dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            raise ValueError(
                f"{source}: tensor {printed(name)} has type {tensor.tensor_type.name}, which is "
                "not supported."
            ) from None


class _Reader(GGUFReader):
    """A reader that refuses to read past the end of the file; its base returns empty slices."""

    def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
        order = self.byte_order if override_order is None else override_order
        kind = np.dtype(dtype).newbyteorder(order)
        if offset + kind.itemsize * int(count) > self.data.nbytes:
            raise ValueError("it is cut off")
        return np.frombuffer(self.data, kind, int(count), offset)


def _open(source: str) -> GGUFReader:
    try:
        reader = _Reader(source)
    except (ArithmeticError, LookupError, RecursionError, ValueError, OSError) as error:
        raise ValueError(f"{source}: not a readable GGUF file ({error}).") from None
    if reader.byte_order != "I":
        raise ValueError(f"{source}: GGUF of the other byte order is not supported.")
    return reader
