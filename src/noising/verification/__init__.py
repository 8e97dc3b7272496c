"""The identities of the theory, held against a user's own parts with oracles where the network would be."""
