"""python scripts/weightings.py [any overrides of train.py]: see --help."""

from noising.commands import weightings

if __name__ == "__main__":
    weightings()
