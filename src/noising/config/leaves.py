"""The leaves of a config: what stands where."""

from collections.abc import Iterator, Mapping
from typing import Any


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of everything in a config that holds nothing more; items of lists go by their place."""
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list | tuple) else ()
    if not items or not node:
        yield path, node
    for name, value in items:
        yield from leaves(value, f"{path}.{name}" if path else str(name))
