"""The mathematics of denoising diffusion models: torch only, one file per noun of the theory."""
