"""Rows in, tables and figures out: every number an experiment shows is a `Row` in a file."""

from isojax.report.figure import draw_lines as draw_lines
from isojax.report.figure import new_figure as new_figure
from isojax.report.figure import save_figure as save_figure
from isojax.report.jobs import Entry as Entry
from isojax.report.jobs import Job as Job
from isojax.report.jobs import fill as fill
from isojax.report.rows import Record as Record
from isojax.report.rows import Row as Row
from isojax.report.rows import Stamp as Stamp
from isojax.report.rows import read_rows as read_rows
from isojax.report.source import source_of as source_of
from isojax.report.stats import Stat as Stat
from isojax.report.stats import against as against
from isojax.report.stats import complete as complete
from isojax.report.stats import least as least
from isojax.report.stats import paired as paired
from isojax.report.stats import select as select
from isojax.report.stats import stat as stat
from isojax.report.stats import summarize as summarize
from isojax.report.study import Study as Study
from isojax.report.table import markdown as markdown
from isojax.report.table import pivot as pivot
