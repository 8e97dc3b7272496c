"""noising: an experiment framework for diffusion models in PyTorch Lightning and Hydra.

`import noising as nz` has every public part by its name; __init__.pyi lists them. None is imported before it is used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
