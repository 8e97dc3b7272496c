"""How a number is printed."""

from __future__ import annotations

__all__ = ["number"]


def number(value: float | None) -> str:
    """Four places, or two digits where those would be zeros."""
    if value is None:  # not finite
        return "nan"
    return f"{value:.4f}" if abs(value) >= 1e-4 or value == 0 else f"{value:.1e}"
