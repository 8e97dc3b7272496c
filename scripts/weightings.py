"""python scripts/weightings.py [any overrides of train.py]: see --help."""

from noising.cli.main import weightings

if __name__ == "__main__":
    weightings()
