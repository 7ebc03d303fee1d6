"""Recipes: codecs to be fitted to samples, as plain data.

    recipe = Recipe.parse("centre@aligned:0.5@hadamard/lloyd_max:fitted")
    codec = recipe.fit(key, Samples(x, metric), bits=3)

Coordinates (see `isojax.transforms.coordinates`), a slash, and levels (see
`isojax.quantizers.levels`); `centre` in front subtracts the mean. Importing this package registers
all members.
"""

from isojax import learn
from isojax._core.members import COORDINATES, LEVELS, ROUNDINGS, WRAPPERS
from isojax._core.samples import Samples
from isojax.quantizers.levels import Levels
from isojax.recipes.recipe import CENTRE, Recipe
from isojax.transforms.coordinates import Coordinates

__all__ = [
    "CENTRE",
    "COORDINATES",
    "Coordinates",
    "LEVELS",
    "Levels",
    "ROUNDINGS",
    "Recipe",
    "Samples",
    "WRAPPERS",
    "learn",
]
