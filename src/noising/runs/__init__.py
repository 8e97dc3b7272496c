"""What a run leaves: its folder, its results, how it ends, and what may go on from it."""
