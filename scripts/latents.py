"""python scripts/latents.py checkpoint=RUN [key=value ...]: see --help."""

from noising.commands import latents

if __name__ == "__main__":
    latents()
