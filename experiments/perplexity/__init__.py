"""Perplexity of a language model on a text."""
