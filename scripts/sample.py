"""python scripts/sample.py checkpoint=RUN: see --help."""

from noising.commands import sample

if __name__ == "__main__":
    sample()
