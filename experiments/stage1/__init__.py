"""Stage 1 of vector quantization: rotation and codebook of unit vectors."""
