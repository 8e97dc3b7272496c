"""Weights in the layouts of other projects, in and out: the names of their tensors, and how each is stored."""
