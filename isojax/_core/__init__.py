"""What every part of isojax stands on: the pytree dataclass and the argument checks."""
