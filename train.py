"""python train.py [group=choice] [option=value]: see --help. The architecture is src/noising/commands/train.py."""

from noising.cli.main import main

if __name__ == "__main__":
    main("train")
