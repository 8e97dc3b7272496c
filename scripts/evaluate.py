"""python scripts/evaluate.py checkpoint=RUN: see --help."""

from noising.commands import evaluate

if __name__ == "__main__":
    evaluate()
