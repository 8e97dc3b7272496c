"""From the nodes of a config to objects: what a node may name, the types of its options, its secrets."""
