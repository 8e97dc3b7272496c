"""python train.py [group=choice] [option=value]: see --help. The architecture is src/noising/jobs/train.py."""

from noising.commands import train

if __name__ == "__main__":
    train()
