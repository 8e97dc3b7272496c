"""What happens while a network trains: samples, quality checks, results, the fitted variance."""
