"""Safe ends of a training: preemption, divergence, ranks that end together."""
