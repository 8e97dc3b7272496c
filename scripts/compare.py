"""python scripts/compare.py A B: see --help."""

from noising.cli.main import main

if __name__ == "__main__":
    main("compare")
