"""Learning-rate factors as functions of the optimizer step; a factor of 1 is the optimizer's own rate."""

import math


def constant(step: int, warmup: int = 0) -> float:
    """Rise linearly over the first `warmup` steps, then stay."""
    if warmup < 0:
        raise ValueError(f"warmup must not be negative, got {warmup}")
    return min(1.0, (step + 1) / (warmup + 1))


def cosine(step: int, max_steps: int, warmup: int = 0, final: float = 0.0) -> float:
    """Rise linearly over `warmup` steps, then fall along half a cosine to `final` at max_steps."""
    rise = constant(step, warmup)
    if not 0 <= final <= 1:
        raise ValueError(f"final must be between 0 and 1, got {final}")
    if step < warmup:
        return rise
    progress = min(1.0, (step - warmup) / max(1, max_steps - warmup))
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


def inverse_square_root(
    step: float, batch_size: int = 1, decay_batches: float = 35_000, warmup_images: float = 10_000_000
) -> float:
    """Rise linearly over the first images, stay, and fall as 1/√step after `decay_batches` steps.

    batch_size: images of a step, over all devices and accumulation. Karras et al., "Analyzing and Improving the
    Training Dynamics of Diffusion Models" (2024), and their code. https://arxiv.org/abs/2312.02696
    """
    for name, number in {"decay_batches": decay_batches, "warmup_images": warmup_images}.items():
        if number <= 0:
            raise ValueError(f"{name} must be above 0, got {number}")
    return min(1.0, step * batch_size / warmup_images) / math.sqrt(max(1.0, step / decay_batches))
