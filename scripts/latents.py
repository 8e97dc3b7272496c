"""python scripts/latents.py checkpoint=RUN [key=value ...]: see --help."""

from noising.cli.main import latents

if __name__ == "__main__":
    latents()
