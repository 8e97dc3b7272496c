"""The list of config groups in `--help`: a few words for each, and the choices that the folders really hold."""

import textwrap

from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig, OmegaConf

GROUPS = {
    "schedule": "how much signal and noise an image holds at each time",
    "parameterization": "what the network predicts: noise, image, velocity, ...",
    "noise_label": "how the noise level is given to the network",
    "variance": "the variance of a reverse step: fixed or learned",
    "times": "how training samples its times",
    "objective": "the loss",
    "weighting": "the loss's weight at each noise level",
    "decoder": "the last step, from continuous values to grey levels",
    "bound": "how the bound on the likelihood is evaluated",
    "benchmark": "which comparison is measured",
    "solver": "the ODE solver of the flow, and its accuracy",
    "divergence": "the divergence of the flow: exact or estimated",
    "metrics": "how the quality of samples is measured",
    "sampler": "the sampling method: ancestral, DDIM, Heun, ...",
    "grid": "the times of a sampler's steps",
    "guidance": "stronger conditioning, from a second prediction",
    "model": "the network",
    "data": "the images",
    "augmentation": "random transformations of the training images",
    "optimizer": "the optimizer",
    "lr_schedule": "the learning rate over the steps",
    "ema": "averaged weights",
    "callbacks": "what happens besides the steps: samples, checks, results",
    "logger": "where numbers and images are logged",
    "trainer": "how long to train, and on which devices",
    "experiment": "the complete recipe of a paper: experiment=NAME",
    "known": "a public checkpoint: its recipe, and what its file does not say",
}
_INDENT = " " * 22


def group_list(*, _root_: DictConfig) -> str:
    """The groups that the command takes, with their words and the choices on Hydra's search path."""
    loader = GlobalHydra.instance().config_loader()
    lines = []
    for group in sorted(loader.get_group_options("", ObjectType.GROUP)):
        choices = loader.get_group_options(group, ObjectType.CONFIG)
        # a group of which several are taken, as in `logger: [csv]`, is in no choice: their names are its keys
        several = not set(choices).isdisjoint(_root_.get(group) or {})
        if group in _root_.hydra.runtime.choices or several:
            lines.append(f"  {group:17} {GROUPS.get(group, '')}".rstrip())
            lines += textwrap.wrap(", ".join(choices), 100, initial_indent=_INDENT, subsequent_indent=_INDENT)
    return "\n".join(lines)


def register_group_list() -> None:
    """Make the list the value of `${config_groups:}`, which the help template in conf/ uses."""
    OmegaConf.register_new_resolver("config_groups", group_list, replace=True)
