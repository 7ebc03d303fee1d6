"""Rows for the tests of reports."""

UNITS = {"mse": "1", "nll": "nats per token", "cosine": "1", "bytes": "bytes"}


def rows_of(stamp, values, metric="mse", **config):
    return [r for s, v in enumerate(values) for r in stamp.rows(config, s, {metric: v}, UNITS)]
