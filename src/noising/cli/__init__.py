"""Plumbing of the command line: overrides, folders, help, sweeps. Nobody needs to read it to use the rest."""
