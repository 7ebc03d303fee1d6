"""Study: rotations learned by the loss of the whole model."""
