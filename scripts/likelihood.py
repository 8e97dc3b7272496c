"""python scripts/likelihood.py checkpoint=RUN: see --help."""

from noising.commands import likelihood

if __name__ == "__main__":
    likelihood()
