"""Study: rotations learned on the loss of the whole model."""
