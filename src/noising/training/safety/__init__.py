"""What ends a training safely: preemption, divergence, ranks that end together."""
