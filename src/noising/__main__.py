"""`python -m noising NAME ...`: the command line, as `noising NAME ...`."""

from noising.cli.main import cli

if __name__ == "__main__":
    cli()
