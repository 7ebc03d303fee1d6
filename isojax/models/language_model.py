"""A decoder together with its tokenizer, and what goes with them into a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from isojax.models.config import ModelConfig
from isojax.models.decoder import Params


@dataclasses.dataclass(frozen=True)
class Sidecar:
    """What a checkpoint says beside the model itself, kept so that it can be saved again.

    Attributes:
        fields: of `config.json`: the numbers of special tokens.
        files: small files by name: generation settings, chat template, special tokens.
    """

    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """A decoder with its parameters and its tokenizer.

    Attributes:
        name: base name of what it was loaded from.
        config: of the decoder.
        params: the tree of `init_params`.
        tokenizer: text to token numbers, see `encode`.
        sidecar: what `save_checkpoint` writes beside them.
    """

    name: str
    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    sidecar: Sidecar = Sidecar()
