"""The likelihood of a denoiser: the variational bound, its estimators, and the exact likelihood of its flow."""
