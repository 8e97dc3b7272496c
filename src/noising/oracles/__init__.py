"""Data with a known answer: distributions whose optimal denoiser and entropy are known in closed form."""
