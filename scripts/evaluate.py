"""python scripts/evaluate.py checkpoint=RUN: see --help."""

from noising.cli.main import evaluate

if __name__ == "__main__":
    evaluate()
