"""Training with Lightning: the module, and the callbacks that average, sample, measure and record."""
