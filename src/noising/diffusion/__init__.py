"""The mathematics of denoising diffusion models, one file per noun of the theory: numerical libraries only."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
