"""Whole models: a plan says what stands where, and one call makes it so.

plan = Plan.parse("input: hadamard/absmax bits=4; weight: absmax bits=4 rounding=gptq")
print(describe(plan, model.config))  # what merges, what runs online, bits; no weights needed
stats = calibrate(model, windows, plan)
quantized = quantize(key, model, plan, stats)
summary(score(quantized, windows, reference(model, windows)))
generate(quantized, [prompt], 64)
save(quantized, "folder")

Published methods are plans by name: `preset("quarot", bits=4)`.
"""

from isojax.quantize.calibrate import calibrate as calibrate
from isojax.quantize.costs import Costs as Costs
from isojax.quantize.costs import costs as costs
from isojax.quantize.describe import Description as Description
from isojax.quantize.describe import describe as describe
from isojax.quantize.generate import generate as generate
from isojax.quantize.parts import PLACES as PLACES
from isojax.quantize.plan import Plan as Plan
from isojax.quantize.plan import Rule as Rule
from isojax.quantize.presets import find_plan as find_plan
from isojax.quantize.presets import preset as preset
from isojax.quantize.quantize import quantize as quantize
from isojax.quantize.quantize import unquantized as unquantized
from isojax.quantize.quantized import Origin as Origin
from isojax.quantize.quantized import Quantized as Quantized
from isojax.quantize.save import load_quantized as load_quantized
from isojax.quantize.save import save as save
from isojax.quantize.score import reference as reference
from isojax.quantize.score import score as score
from isojax.quantize.score import summary as summary
from isojax.quantize.stats import Stats as Stats
from isojax.quantize.texts import token_windows as token_windows
