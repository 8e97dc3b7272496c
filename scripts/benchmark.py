"""python scripts/benchmark.py bound checkpoint=RUN: see --help."""

from noising.cli.main import benchmark

if __name__ == "__main__":
    benchmark()
