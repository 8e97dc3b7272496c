"""The commands' work: train, evaluate, sample; each a function (config, run folder)."""
