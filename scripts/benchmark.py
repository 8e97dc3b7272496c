"""python scripts/benchmark.py bound checkpoint=RUN: see --help."""

from noising.cli.main import main

if __name__ == "__main__":
    main("benchmark")
