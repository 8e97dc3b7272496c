"""Lightning callbacks: sample grids, quality checks, results, the fitted variance."""
