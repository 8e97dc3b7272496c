"""python scripts/verify.py [any overrides of train.py]: see --help."""

from noising.cli.main import main

if __name__ == "__main__":
    main("verify")
