"""python scripts/reference.py data=NAME: see --help."""

from noising.commands import reference

if __name__ == "__main__":
    reference()
