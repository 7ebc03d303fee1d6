"""Whole models: a plan says what stands where, and one call makes it so.

plan = Plan.parse("input: hadamard/absmax bits=4; weight: absmax bits=4 rounding=gptq")
stats = calibrate(model, windows, plan)
quantized = quantize(key, model, plan, stats)
summary(score(quantized, windows, reference(model, windows)))
"""

from isojax.quantize.calibrate import calibrate as calibrate
from isojax.quantize.parts import PLACES as PLACES
from isojax.quantize.plan import Plan as Plan
from isojax.quantize.plan import Rule as Rule
from isojax.quantize.quantize import quantize as quantize
from isojax.quantize.quantize import unquantized as unquantized
from isojax.quantize.quantized import Quantized as Quantized
from isojax.quantize.score import reference as reference
from isojax.quantize.score import score as score
from isojax.quantize.score import summary as summary
from isojax.quantize.stats import Stats as Stats
