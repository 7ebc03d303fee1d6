"""Recipes: how to make a codec from samples, as plain data.

    recipe = Recipe.parse("centre@aligned:0.5@hadamard/lloyd_max:fitted")
    codec = recipe.fit(key, Samples(x, metric), bits=3)

Coordinates (see `isojax.transforms.coordinates`), a slash, and levels (see
`isojax.quantizers.levels`); `centre` in front subtracts the mean. Importing this package makes all
members known.
"""

from isojax import learn as learn
from isojax._core.members import COORDINATES as COORDINATES
from isojax._core.members import LEVELS as LEVELS
from isojax._core.members import ROUNDINGS as ROUNDINGS
from isojax._core.members import WRAPPERS as WRAPPERS
from isojax._core.samples import Samples as Samples
from isojax.quantizers.levels import Levels as Levels
from isojax.recipes.recipe import Recipe as Recipe
from isojax.transforms.coordinates import Coordinates as Coordinates
