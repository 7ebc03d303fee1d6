"""The Isotropic Tradeoff: what a global rotation does to outliers and to the noise floor."""
