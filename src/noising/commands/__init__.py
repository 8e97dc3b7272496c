"""A file a command: each a function (config, run folder) -> None; and the tables and sample jobs that they share."""
