"""Study: every transform by every measure."""
