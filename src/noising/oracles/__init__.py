"""Oracles: distributions of images whose optimal denoiser and entropy are known in closed form."""
