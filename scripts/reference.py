"""python scripts/reference.py data=NAME: see --help."""

from noising.cli.main import reference

if __name__ == "__main__":
    reference()
