"""Recipes of stores of keys or values, fitted on calibration tokens."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from isojax._core.checks import check_choice, check_not_empty
from isojax._core.finite import check_finite
from isojax._core.samples import Samples
from isojax.kvcache.attention import apply_rope
from isojax.kvcache.store import Store, mean_at, store
from isojax.recipes import Recipe

OFFSETS = ("none", "pre_rope")
ROPE = ("after", "before")


@dataclasses.dataclass(frozen=True)
class StoreRecipe:
    """A store of keys or values to be fitted; `StoreRecipe.parse(str(r)) == r`.

        centre@haar/lloyd_max:sphere sinks=4

    Attributes:
        recipe: of the codec of each layer and head.
        offset: `pre_rope` subtracts the mean of keys before the rotary embedding (and adds it back,
            rotated), or the mean of values, which have no positions. `centre` in the recipe
            subtracts the mean of the codec's input, after the embedding.
        rope: whether keys are stored `after` or `before` the rotary embedding.
        page: tokens encoded together; above 1 for levels with a range per channel, and only then.
        sinks: first tokens that stay exact.
        recent: last tokens that stay exact.
        scale_dtype: of norms, minima and maxima.
    """

    recipe: Recipe
    offset: str = "none"
    rope: str = "after"
    page: int = 1
    sinks: int = 0
    recent: int = 0
    scale_dtype: str = "float16"

    def __post_init__(self) -> None:
        check_choice("offset", self.offset, OFFSETS)
        check_choice("rope", self.rope, ROPE)
        if self.rope == "before" and "metric" in self.recipe.needs:
            raise ValueError(
                f"rope must be after for {self.recipe.coordinates}, whose metric is that of keys "
                "after the rotary embedding; got before."
            )
        granularity = self.recipe.levels.member.arguments.get("granularity", "token")
        if (self.page > 1) != (granularity == "channel"):
            raise ValueError(
                "page must be above 1 for a range per channel and 1 for others, got "
                f"page={self.page} for {self.recipe.levels}."
            )

    @classmethod
    def parse(cls, text: str) -> StoreRecipe:
        """The recipe written in `text`: that of a codec, then settings as `name=value`.

        Raises:
            ValueError: there is no such setting, or it has no such value.
        """
        first, *settings = text.split() or [""]
        for setting in settings:
            if "=" not in setting:
                raise ValueError(f"settings must be name=value, got {setting!r}.")
        return cls.of(Recipe.parse(first), dict(s.split("=", 1) for s in settings))

    @classmethod
    def of(cls, recipe: Recipe, settings: dict[str, str]) -> StoreRecipe:
        """The recipe with settings as strings."""
        kinds: dict[str, Any] = {f.name: type(f.default) for f in dataclasses.fields(cls)[1:]}
        for name, value in settings.items():
            check_choice("setting of a cache", name, kinds)
            if kinds[name] is int and not value.isdecimal():
                raise ValueError(f"{name} must be a whole number, got {value!r}.")
        read: dict[str, Any] = {name: kinds[name](value) for name, value in settings.items()}
        return cls(recipe, **read)

    def __str__(self) -> str:
        return " ".join([str(self.recipe), *(f"{k}={v}" for k, v in self.settings.items())])

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that differ from the defaults."""
        own = {f.name: (getattr(self, f.name), f.default) for f in dataclasses.fields(self)[1:]}
        return {name: value for name, (value, default) in own.items() if value != default}

    @property
    def words(self) -> dict[str, Any]:
        """Its parts as the keys of a row."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)[1:]}
        centred = "channel_post_rope" if self.recipe.centre else "none"
        own["offset"] = "channel_pre_rope" if self.offset == "pre_rope" else centred
        return self.recipe.words | own

    def fit(
        self,
        key: Key[Array, ""],
        samples: Float[Array, "layers n t g d"],
        bits: int | float,
        frequency: Float[Array, " half"] | None = None,
        metric: Float[Array, "layers g d d"] | None = None,
        positions: Any = None,
    ) -> Store:
        """The store for a model with keys or values like `samples`.

        Args:
            key: of the random stages, split over layers and heads.
            samples: keys after the rotary embedding, or values, of n texts of t tokens each, for
                all layers and key heads.
            bits: bits per code; the mean, where codes differ.
            frequency: of the rotary embedding, for keys; None for values.
            metric: in which errors count, see `isojax.recipes.Samples`: the second moment of the
                queries that read the keys, or of the rows of o_proj that read the values.
            positions: of the t tokens in their texts, concrete; 0 to t - 1 by default.

        Raises:
            ValueError: the recipe cannot be fitted on these samples or to these bits, or there are
                no tokens after the sinks; or `samples` or `metric` are concrete and not finite.
        """
        check_not_empty("samples", samples)
        at = np.arange(samples.shape[2]) if positions is None else np.asarray(positions)
        kept = np.flatnonzero(at >= self.sinks)
        if not len(kept):
            raise ValueError(
                f"samples must be longer than {self.sinks} sinks, got {samples.shape}."
            )
        # tokens never read from codes are not fitted on
        whole = len(kept) == len(at)
        x = (samples if whole else samples[:, :, kept]).astype(jnp.float32)
        check_finite("samples", x)  # everything below is traced
        if metric is not None:
            check_finite("metric", metric)
        at, mean, recipe = jnp.asarray(at[kept]), None, self.recipe
        if frequency is None and self.offset == "pre_rope":
            recipe = dataclasses.replace(recipe, centre=True)
        elif frequency is not None and (self.rope, self.offset) != ("after", "none"):
            unrotated = apply_rope(x, -at, frequency)
            x = unrotated if self.rope == "before" else x
            if self.offset == "pre_rope":
                mean = unrotated.mean((1, 2))
                x = x - jax.vmap(lambda m: mean_at(m, at, frequency, self.rope))(mean)[:, None]
        layers, heads, dim = x.shape[0], *x.shape[3:]
        vectors = x.transpose(0, 3, 1, 2, 4).reshape(layers, heads, -1, dim)
        keys = jax.random.split(key, (layers, heads))

        def one(key: Array, x: Array, metric: Any) -> Any:
            return recipe.fit(key, Samples(x, metric), bits)

        return store(
            jax.vmap(jax.vmap(one))(keys, vectors, metric), mean=mean,
            rope="after" if frequency is None else self.rope, page=self.page,
            sinks=self.sinks, recent=self.recent, scale_dtype=self.scale_dtype,
        )  # fmt: skip


jax.tree_util.register_dataclass(
    StoreRecipe, ["recipe"], ["offset", "rope", "page", "sinks", "recent", "scale_dtype"]
)
