"""Whole models: a plan says what is quantized and how, and one call quantizes the model.

plan = Plan.parse("input: hadamard/absmax bits=4; weight: absmax bits=4 rounding=gptq")
print(describe(plan, model.config))  # what merges, what runs online, bits; no weights needed
stats = calibrate(model, windows, plan)
quantized = quantize(key, model, plan, stats)
summary(score(quantized, windows, reference(model, windows)))
generate(quantized, [prompt], 64)
save(quantized, "folder")

Published methods are plans by name: `preset("quarot", bits=4)`.
"""

from isojax.quantize.calibrate import calibrate
from isojax.quantize.costs import Costs, costs
from isojax.quantize.describe import Description, describe
from isojax.quantize.generate import generate
from isojax.quantize.parts import PLACES
from isojax.quantize.plan import Plan, Rule
from isojax.quantize.presets import find_plan, preset
from isojax.quantize.quantize import quantize, unquantized
from isojax.quantize.quantized import Origin, Quantized
from isojax.quantize.save import load_quantized, save
from isojax.quantize.score import reference, score, summary
from isojax.quantize.scorer import Scorer
from isojax.quantize.stats import Stats
from isojax.quantize.texts import token_windows

__all__ = [
    "Costs",
    "Description",
    "Origin",
    "PLACES",
    "Plan",
    "Quantized",
    "Rule",
    "Scorer",
    "Stats",
    "calibrate",
    "costs",
    "describe",
    "find_plan",
    "generate",
    "load_quantized",
    "preset",
    "quantize",
    "reference",
    "save",
    "score",
    "summary",
    "token_windows",
    "unquantized",
]
