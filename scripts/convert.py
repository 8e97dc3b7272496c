"""python scripts/convert.py weights=FILE | checkpoint=RUN to=LAYOUT: see --help."""

from noising.cli.main import main

if __name__ == "__main__":
    main("convert")
