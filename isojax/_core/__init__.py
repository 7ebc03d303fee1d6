"""The base of every package: the pytree dataclass, argument checks, members by name."""
