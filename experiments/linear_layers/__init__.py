"""Rotated, aligned, or aligned then flattened: the inputs of linear layers."""
