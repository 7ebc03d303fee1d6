"""Study: rotation against alignment, by coder and rate."""
