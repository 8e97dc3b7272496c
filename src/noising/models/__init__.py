"""Networks: ``model(x, noise_label, class_label=None)``, independent of the diffusion."""
