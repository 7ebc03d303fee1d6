"""Rows, and tables and figures made from them: every reported number is a `Row` in a file."""

from isojax.report.figure import (
    color_of,
    deviations,
    draw_curve,
    draw_lines,
    draw_pairs,
    draw_ranked,
    errors,
    new_figure,
    save_figure,
    span,
)
from isojax.report.jobs import Entry, Job, fill
from isojax.report.rows import Record, Row, Stamp, read_rows
from isojax.report.source import source_of
from isojax.report.stats import (
    Stat,
    against,
    averaged,
    complete,
    distinct,
    frontier,
    least,
    paired,
    select,
    stat,
    summarize,
    summarize_by,
)
from isojax.report.study import Study
from isojax.report.table import bullets, markdown, pivot
from isojax.report.timing import times_in_turn

__all__ = [
    "Entry",
    "Job",
    "Record",
    "Row",
    "Stamp",
    "Stat",
    "Study",
    "against",
    "averaged",
    "bullets",
    "color_of",
    "complete",
    "deviations",
    "distinct",
    "draw_curve",
    "draw_lines",
    "draw_pairs",
    "draw_ranked",
    "errors",
    "fill",
    "frontier",
    "least",
    "markdown",
    "new_figure",
    "paired",
    "pivot",
    "read_rows",
    "save_figure",
    "select",
    "source_of",
    "span",
    "stat",
    "summarize",
    "summarize_by",
    "times_in_turn",
]
