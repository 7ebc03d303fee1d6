"""Study: block rotations and permutations before down_proj."""
