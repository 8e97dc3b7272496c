"""python scripts/latents.py checkpoint=RUN [key=value ...]: see --help."""

from noising.cli.main import main

if __name__ == "__main__":
    main("latents")
