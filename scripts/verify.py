"""python scripts/verify.py [any overrides of train.py]: see --help."""

from noising.cli.main import verify

if __name__ == "__main__":
    verify()
