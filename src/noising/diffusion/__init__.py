"""The mathematics of denoising diffusion models, one file per noun of the theory: numerical libraries only."""
