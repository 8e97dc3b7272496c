"""Identities of the theory, checked numerically for any recipe, with oracles in place of networks."""
