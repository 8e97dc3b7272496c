"""python scripts/compare.py A B: see --help."""

from noising.commands import compare

if __name__ == "__main__":
    compare()
