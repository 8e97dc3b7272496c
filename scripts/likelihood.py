"""python scripts/likelihood.py checkpoint=RUN: see --help."""

from noising.cli.main import main

if __name__ == "__main__":
    main("likelihood")
