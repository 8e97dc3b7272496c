"""noising: an experiment framework for diffusion models in PyTorch Lightning and Hydra."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from noising.trained import TrainedRun, load

__all__ = ["TrainedRun", "load"]


def __getattr__(name: str) -> Any:
    """`noising.load` without importing torch and Lightning where only the command line is wanted."""
    if name in __all__:
        from noising import trained

        return getattr(trained, name)
    raise AttributeError(f"module 'noising' has no attribute {name!r}")
