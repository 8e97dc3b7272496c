"""A run on the disk: its folder, its results, its status, and which run a command may resume."""
