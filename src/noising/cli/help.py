"""The list of config groups in `--help`: a few words for each, and the choices that the folders really hold."""

import textwrap

from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig, OmegaConf

GROUPS = {
    "schedule": "how much signal and noise an image holds at each time",
    "parameterization": "what the network predicts: noise, image, velocity, ...",
    "noise_label": "how the network is told the noise level",
    "variance": "the variance of a reverse step: fixed or learned",
    "times": "how training draws its times",
    "objective": "the loss",
    "weighting": "the loss's weight at each noise level",
    "decoder": "the last step, from continuous to 8-bit images",
    "bound": "how the bound on the likelihood is evaluated",
    "benchmark": "what is measured against what",
    "solver": "how the flow's equation is solved, and how exactly",
    "divergence": "the flow's change of volume: exact or estimated",
    "metrics": "how the quality of samples is measured",
    "sampler": "the step by which images are drawn",
    "grid": "where a sampler's steps lie",
    "guidance": "stronger conditioning, by a second prediction",
    "model": "the network",
    "data": "the images",
    "augmentation": "random transformations of the training images",
    "optimizer": "the optimizer",
    "lr_schedule": "the learning rate over the steps",
    "ema": "averaged weights",
    "callbacks": "what happens besides training",
    "logger": "where numbers and images are logged",
    "trainer": "how long, and on which devices",
    "experiment": "a whole recipe of a paper: experiment=NAME",
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
