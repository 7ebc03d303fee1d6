"""Convert committed rows to the current vocabulary: units, metrics, names and values of keys.

    python scripts/migrate_rows.py              # docs/rows.jsonl and docs/results/*/rows.jsonl
    python scripts/migrate_rows.py FILE ...

The tables below list the renamed ones; running it again changes nothing. Values, seeds and the
provenance of rows are unchanged.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from experiments.kv_cache.methods import recipes, words

ROOT = Path(__file__).parents[1]

# old unit -> new unit
UNITS = {
    "nat a token": "nats per token",
    "nat": "nats",
    "bit a number": "bits per element",
    "bit": "bits per element",
    "byte": "bytes",
    "token/s": "tokens/s",
}
# metric -> its unit, for rows with a wrong one
UNITS_OF = {
    "kl": "nats per token",
    "delta_nll": "nats per token",
    "rate_bits": "bits per element",
    "bytes_per_token": "bytes per token",
    "compiles": "count",
}
# (experiment or "*", old metric) -> new metric
METRICS: dict[tuple[str, str], str] = {("end_to_end", "kl"): "kl_mean"}
# (experiment or "*", old key) -> new key
KEYS: dict[tuple[str, str], str] = {
    ("end_to_end", "start"): "coordinates",
    ("isotropic_tradeoff", "transform"): "coordinates",
    ("stage1", "transform"): "coordinates",
    ("alignment", "coder"): "coding",
    ("alignment", "transform"): "coordinates",
    ("compare", "method"): "coordinates",
}
# (experiment or "*", current key) -> {old value: new value}
VALUES: dict[tuple[str, str], dict[Any, Any]] = {
    ("compare", "coordinates"): {
        "massdiff@block_hadamard:32": "mass_diff@block_hadamard:32",
        "massdiff@quaternion_full": "mass_diff@quaternion_full",
    },
}
# (experiment, current key, old value) -> its replacement
REPLACED: dict[tuple[str, str, Any], dict[str, Any]] = {
    ("compare", "coordinates", "none"): {"setting": "exact"},
    ("compare", "coordinates", "zero"): {"quantizer": "zero"},
    ("compare", "coordinates", "gaussian_noise"): {"quantizer": "gaussian_noise"},
}
# (experiment, old metric) -> new metric, and additions to the configuration
SPLIT: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("compare", "kv_delta_nll"): ("delta_nll", {"setting": "KV3"}),
    ("compare", "kv_bits"): ("rate_bits", {"setting": "KV3"}),
    ("compare", "w4a4_delta_nll"): ("delta_nll", {"setting": "W4A4"}),
}

PERMUTATIONS = {
    "random": "random_permutation", "massdiff": "mass_diff", "coactivation": "co_activation",
    "zigzag": "zigzag", "absmax": "absmax_order",
}  # fmt: skip


def of_blocks(config: dict[str, Any], full: int) -> dict[str, Any]:
    """Block and permutation as coordinates; the rounding of weights separate from the setting."""
    config = dict(config)
    if "permutation" in config:
        block, permutation = config.pop("block"), config.pop("permutation")
        coordinates = "hadamard" if block == full else f"block_hadamard:{block}"
        if permutation == "smooth":
            coordinates = "smooth:0.5"
        elif block == 0:
            coordinates = "identity"
        elif permutation != "none":
            coordinates = f"{PERMUTATIONS[permutation]}@{coordinates}"
        config["coordinates"] = coordinates
    setting = config.get("setting", "exact")
    if setting != "exact" and "rounding" not in config:
        setting, _, rounding = setting.partition("-")
        rounded = rounding or ("nearest" if setting.startswith("W4") else "none")
        config |= {"setting": "A4-down" if setting == "D4" else setting, "rounding": rounded}
    return config


def of_caches(config: dict[str, Any], full: int) -> dict[str, Any]:
    """The parts of a method in the notation of recipes."""
    if config["method"] == "none" or "quantizer" in config:
        return config
    old = dict(config)
    method = old["method"].replace("massdiff", "mass_diff").replace("coactivation", "co_activation")
    target, sinks, recent = old["target"], old["sinks"], old["recent"]
    least = [max(r.sinks for r in recipes(method)), max(r.recent for r in recipes(method))]
    pair = recipes(
        method, *(n if n > m else 0 for n, m in zip((sinks, recent), least, strict=True))
    )
    new = words(pair, target)
    same = ("offset", "page", "sinks", "recent", "rope", "scale_dtype")
    if any(new[name] != old[name] for name in same):
        raise SystemExit(f"{method} is not what it was: {old}, {new}.")
    kept = {k: v for k, v in old.items() if k not in OLD and not k.startswith("value_")}
    return kept | new | {"method": method}


OLD = (
    "transform", "permutation", "offset", "scale", "codebook", "spectrum", "power", "allocation",
    "gain", "group", "rope", "sparse", "page", "sinks", "recent", "scale_dtype",
)  # fmt: skip


def of_tensors(config: dict[str, Any], full: int) -> dict[str, Any]:
    """No block separate from the coordinates, where all had full ones."""
    if config.get("block", 0):
        raise SystemExit(f"blocks are to be written into the coordinates: {config}.")
    return {k: v for k, v in config.items() if k != "block"}


REWRITES = {"isotropic_tradeoff": of_tensors, "block_rotation": of_blocks, "kv_cache": of_caches}


def migrated(row: dict[str, Any], full: int = 0) -> dict[str, Any]:
    """The row in the current vocabulary; `full` is the length of the full block in its model."""
    experiment = row["experiment"]

    def named(table: dict[tuple[str, str], Any], name: str, default: Any) -> Any:
        return table.get((experiment, name), table.get(("*", name), default))

    metric, joins = SPLIT.get((experiment, row["metric"]), (row["metric"], {}))
    metric = named(METRICS, metric, metric)
    config = {named(KEYS, key, key): value for key, value in row["config"].items()}
    if len(config) < len(row["config"]):
        raise SystemExit(f"two keys of a row get one name: {row['config']}.")
    config = {key: named(VALUES, key, {}).get(value, value) for key, value in config.items()}
    if experiment in REWRITES:
        config = REWRITES[experiment](config, full)
    for key, value in list(config.items()):
        if (experiment, key, value) in REPLACED:
            del config[key]
            config |= REPLACED[experiment, key, value]
    config |= joins
    unit = UNITS_OF.get(metric, UNITS.get(row["unit"], row["unit"]))
    return row | {"config": config, "metric": metric, "unit": unit}


def main(files: list[Path]) -> None:
    """Rewrite the files."""
    for path in files:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        full: dict[str, int] = {}
        for row in rows:
            on = row["config"]
            if row["experiment"] == "block_rotation" and on.get("permutation") == "none":
                full[on["model"]] = max(full.get(on["model"], 0), on["block"])
        new = [migrated(row, full.get(row["config"].get("model"), 0)) for row in rows]
        changed = sum(a != b for a, b in zip(rows, new, strict=True))
        path.write_text("".join(json.dumps(row) + "\n" for row in new), encoding="utf-8")
        print(f"{path}: {changed} of {len(rows)} rows changed")


if __name__ == "__main__":
    given = [Path(name) for name in sys.argv[1:]]
    main(given or [ROOT / "docs" / "rows.jsonl", *ROOT.glob("docs/results/*/rows.jsonl")])
