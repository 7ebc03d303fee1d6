"""Tokens that are missing from a tokenizer file but named in the other files of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer

from isojax.models.fields import short
from isojax.models.json_file import read_json
from isojax.models.tokenizer_json import refuses_panic

_CONFIG, _ADDED, _SPECIAL = (
    "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json",
)  # fmt: skip
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
          "mask_token")  # fmt: skip
_LISTS = ("additional_special_tokens", "extra_special_tokens")
_FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")


class _Named(NamedTuple):
    """A token, its id in the file, if any, and the file and field that name it."""

    token: AddedToken
    number: int | None
    where: str


def add_named_tokens(tokenizer: Tokenizer, folder: Path) -> None:
    """Add tokens that only the folder's small files name, as transformers does.

    These are `added_tokens_decoder` of tokenizer_config.json or, where it is absent,
    added_tokens.json; then the special tokens by their roles.

    Raises:
        ValueError: a file is damaged, or the id of a token in it is not the next free one.
    """
    config = _read(folder / _CONFIG)
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for named in (*_numbered(folder, config), *_special(folder, config)):
        content = named.token.content
        if not content:
            continue
        if content not in known:
            with refuses_panic(f"{named.where}: {short(content)} cannot be normalized"):
                tokenizer.add_tokens([named.token])
            known.add(content)
        number = tokenizer.token_to_id(content)
        if named.number is not None and number != named.number:
            raise ValueError(
                f"{named.where}: {short(content)} must have the number {number}, the next in the "
                f"vocabulary, got {named.number}."
            )


def _numbered(folder: Path, config: dict[str, Any]) -> Iterator[_Named]:
    decoder = config.get("added_tokens_decoder")
    where = f"{folder / _CONFIG}: added_tokens_decoder"
    if decoder is None:
        added, where = _read(folder / _ADDED), str(folder / _ADDED)
        roles = {named.token.content for named in _special(folder, config)}
        decoder = {}
        for content, number in added.items():
            special = content in roles
            decoder[number] = {"content": content, "special": special, "normalized": not special}
    if not isinstance(decoder, dict):
        raise ValueError(f"{where} must be an object, got {short(decoder)}.")
    numbers = {}
    for number, token in decoder.items():
        whole = isinstance(number, int) and not isinstance(number, bool) and number >= 0
        if not whole and not (isinstance(number, str) and number.isdecimal()):
            raise ValueError(f"{where}: a token's number must be whole, got {short(number)}.")
        numbers[int(number)] = token
    for number in sorted(numbers):
        yield _Named(_token(numbers[number], where), number, where)


def _special(folder: Path, config: dict[str, Any]) -> Iterator[_Named]:
    fields = config
    if "added_tokens_decoder" not in config:
        fields = _read(folder / _SPECIAL) | config
    for role in _ROLES:
        if fields.get(role) is not None:
            where = f"{folder / _CONFIG}: {role}"
            yield _Named(_token(fields[role], where, special=True), None, where)
    for role in _LISTS:
        where, tokens = f"{folder / _CONFIG}: {role}", fields.get(role)
        tokens = list(tokens.values()) if isinstance(tokens, dict) else tokens
        if not isinstance(tokens, list | None):
            raise ValueError(f"{where} must be a list of tokens, got {short(tokens)}.")
        for token in tokens or ():
            yield _Named(_token(token, where, special=True), None, where)


def _token(value: Any, where: str, special: bool = False) -> AddedToken:
    if isinstance(value, str):
        return AddedToken(value, special=special, normalized=not special)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise ValueError(f"{where}: a token must be text or have a content, got {short(value)}.")
    flags = {name: value[name] for name in _FLAGS if name in value}
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise ValueError(f"{where}: {name} must be true or false, got {short(flag)}.")
    return AddedToken(value["content"], **({"special": True} | flags if special else flags))


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
