"""python scripts/compare.py A B: see --help."""

from noising.cli.main import compare

if __name__ == "__main__":
    compare()
