"""python scripts/reference.py data=NAME: see --help."""

from noising.cli.main import main

if __name__ == "__main__":
    main("reference")
