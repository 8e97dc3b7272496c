"""python scripts/likelihood.py checkpoint=RUN: see --help."""

from noising.cli.main import likelihood

if __name__ == "__main__":
    likelihood()
