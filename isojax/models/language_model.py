"""A decoder with its tokenizer, and the other contents of its checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from isojax.models.config import ModelConfig
from isojax.models.decoder import Params


@dataclasses.dataclass(frozen=True)
class Sidecar:
    """The contents of a checkpoint that are not the model, kept to be saved again.

    Attributes:
        fields: of `config.json`: the ids of special tokens.
        files: small files by name: generation settings, chat template, special tokens.
    """

    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """A decoder with its parameters and its tokenizer.

    Attributes:
        name: base name of its source.
        config: of the decoder.
        params: the tree of `init_params`.
        tokenizer: text to token ids, see `encode`.
        sidecar: written by `save_checkpoint` in addition.
    """

    name: str
    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    sidecar: Sidecar = Sidecar()
