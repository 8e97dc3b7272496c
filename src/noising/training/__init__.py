"""Training with Lightning: the module, its checkpoints, and everything that runs while it is trained."""
