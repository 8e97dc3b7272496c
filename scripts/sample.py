"""python scripts/sample.py checkpoint=RUN: see --help."""

from noising.cli.main import sample

if __name__ == "__main__":
    sample()
