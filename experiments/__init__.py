"""One study per question; each is run as `python -m experiments.NAME`."""
