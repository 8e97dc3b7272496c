"""The results of a command's run, with the loggers that its `logger` group names."""

from omegaconf import DictConfig

from noising.config.instantiate import make
from noising.config.secrets import without_secrets
from noising.runs.folder import Run
from noising.runs.results import Results


def open_results(run: Run, cfg: DictConfig, command: str) -> Results:
    """The results, and every chosen logger but metrics.csv, which is always written.

    Raises ConfigError for a logger that cannot be built.
    """
    nodes = {name: node for name, node in (cfg.get("logger") or {}).items() if name != "csv" and node is not None}
    if not nodes:
        return Results(run)
    from lightning.pytorch.loggers import Logger  # here: some commands do without Lightning

    facts = {"run": run, "config": without_secrets(cfg), "command": command}
    return Results(run, [make(node, f"logger.{name}", Logger, **facts) for name, node in nodes.items()])
