"""Study: whole models quantized by plans."""
