"""Image data sets as Lightning data modules: whole in memory, a fixed split, a keyed training order."""
