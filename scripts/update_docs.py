"""Fill the tables of README.md, docs/findings and docs/kernels.md from rows.

    python scripts/update_docs.py                               # from docs/rows.jsonl
    python scripts/update_docs.py --take results/A results/B    # first take rows from there
    python scripts/update_docs.py --check                       # exit 1 if one is out of date

A block of a page, between `<!-- rows: NAME -->` and `<!-- end -->`, is made by the function NAME
of `doc_tables`, `linear_tables` or `speed_tables`. Reports and figures of the taken studies go to
docs/results.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import tyro
from doc_tables import AT3, KV_METHODS, OWN, SHOWN, SIDES
from doc_tables import TABLES as STUDIES
from linear_tables import TABLES as LINEAR
from speed_tables import TABLES as SPEED

from isojax.report import Row, read_rows, select

TABLES = STUDIES | LINEAR | SPEED
ROOT = Path(__file__).parents[1]
ROWS = ROOT / "docs" / "rows.jsonl"
PAGES = (
    ROOT / "README.md",
    ROOT / "docs" / "kernels.md",
    *sorted((ROOT / "docs" / "findings").glob("*.md")),
)
BENCHES = (
    "bench_model",
    "bench_load",
    "bench_quantize",
    "bench_sweep",
    "bench_learn",
    "bench_cpu",
    "bench_gpu",
    "aot_cuda",
)
REPORTED = (
    "compare",
    "end_to_end",
    "kv_cache",
    "block_rotation",
    "linear_layers",
    "stage1",
    "isotropic_tradeoff",
    "alignment",
)


def wanted(row: Row) -> bool:
    """Whether a page shows this row."""
    if row.experiment == "isotropic_tradeoff":
        return row.metric in SHOWN and bool(select([row], **AT3))
    if row.experiment == "kv_cache":
        if row.config["method"] == "none":
            return row.metric == "needle_accuracy"
        shown = row.metric in ("delta_nll", "key_cosine", "rate_bits", "needle_accuracy")
        names = KV_METHODS if row.config["target"] == "KV" else SIDES
        return shown and row.config["bits"] in (2, 3) and row.config["method"] in names
    if row.experiment == "block_rotation":
        if row.metric == "rate_bits":
            return row.config["coordinates"] == "identity"
        shown = row.config.get("setting") == "A4-down" or row.config.get("format") == "int4"
        return row.metric == "delta_nll" and shown
    if row.experiment == "linear_layers":
        # all of a case, so that another run can add seeds; what tables show of tiny, which is quick
        shown = row.metric in ("delta_nll", "kl_mean", "online_transforms", "online_fmas")
        return "rounding" in row.config and (shown or row.config["model"] != "tiny")
    if row.experiment == "end_to_end":
        return row.metric in ("kl_mean", "delta_nll")
    return row.experiment in ("compare", "perplexity", *BENCHES)


def subject(row: Row) -> tuple[str, ...]:
    """The key of rows that a new run replaces; probes of recall are runs of their own."""
    fitted, probe = (row.config.get(name, "") for name in ("calibration", "probe"))
    return row.experiment, row.config.get("model", ""), "" if fitted in OWN else fitted, probe


def keep(folder: Path, rows: list[Row]) -> None:
    """Copy the report and the figure of a study to docs/results."""
    own = [r for r in rows if r.device != "published"]
    if not own or not (folder / "table.md").exists():
        raise SystemExit(f"{folder} holds no finished study.")
    first = own[0]
    if first.experiment in REPORTED:
        fitted = first.config.get("calibration", OWN[0])
        other = "" if fitted in OWN else f"-{Path(fitted).stem}"
        to = ROOT / "docs" / "results" / f"{first.experiment}-{first.config['model']}{other}"
        to.mkdir(parents=True, exist_ok=True)
        for name in ("table.md", "figure.png"):
            shutil.copy(folder / name, to / name)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings."""

    take: tuple[Path, ...] = ()
    """Folders of finished studies; their rows replace all of the same experiment, model,
    calibration text and probe in docs/rows.jsonl."""
    check: bool = False
    """Change nothing; exit 1 if a page is out of date."""


def main(config: Config) -> None:
    """Regenerate the blocks."""
    if config.take and config.check:
        raise SystemExit("take and check exclude each other.")
    if config.take:
        taken = []
        for folder in config.take:
            rows = read_rows(folder / "rows.jsonl")
            keep(folder, rows)
            found = [r for r in rows if wanted(r)]
            if not found and rows[0].experiment not in REPORTED:
                raise SystemExit(f"no page shows anything of {folder}.")
            taken += found
        subjects = {subject(r) for r in taken}
        old = read_rows(ROWS) if ROWS.exists() else []
        rows = {r.identity: r for r in [*(r for r in old if subject(r) not in subjects), *taken]}
        lines = [json.dumps(dataclasses.asdict(r)) + "\n" for r in rows.values()]
        ROWS.write_text("".join(lines), encoding="utf-8")
    rows = read_rows(ROWS)
    for page in PAGES:
        old = page.read_text(encoding="utf-8")
        new = re.sub(
            r"(<!-- rows: (\w+) -->\n).*?(<!-- end -->)",
            lambda m: f"{m[1]}{TABLES[m[2]](rows)}\n{m[3]}",
            old,
            flags=re.S,
        )
        if config.check and new != old:
            raise SystemExit(f"{page.name} is out of date: run python scripts/update_docs.py.")
        page.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,)))
