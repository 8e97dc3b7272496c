"""Files from strangers: no code in them is run, no damage goes unseen, and a config names nobody else's code."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

import noising as package
from noising.errors import ConfigError
from noising.runs.folder import Run
from noising.runs.trust import require_trusted
from noising.training.checkpoints import AtomicCheckpointIO, load_checkpoint
from tests.helpers import SMALL, Command, same


class Malicious:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder / "broken_into"),)


def changed(trained: Path, target: Path, **entries: Any) -> Path:
    """The run's checkpoint with some entries replaced, checksums and all."""
    content = load_checkpoint(Run(trained).last_checkpoint)
    AtomicCheckpointIO().save_checkpoint({**content, **entries}, target)
    return target


def test_code_in_a_checkpoint_is_not_run(trained: Path, noising: Command, tmp_path: Path) -> None:
    bad = changed(trained, tmp_path / "bad.ckpt", times=Malicious(tmp_path))
    outcome = noising("sample", f"checkpoint={bad}", "n=1")
    assert outcome.code == 2
    assert "cannot be read as a checkpoint of weights and plain values" in outcome.err
    assert not (tmp_path / "broken_into").exists()


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.run",
        "noising.data.order.torch.load",
        "noising.experiment.logging.os.system",
        "torch.optim.optimizer.torch.load",
    ],
)
def test_a_config_names_only_what_is_trusted(target: str, trained: Path, noising: Command, tmp_path: Path) -> None:
    config = load_checkpoint(Run(trained).last_checkpoint)["config"]
    config["optimizer"] = {"_partial_": True, "things": [{"_target_": target, "command": "echo"}]}
    bad = changed(trained, tmp_path / "bad.ckpt", config=config)
    for command in ("sample", "evaluate", "latents") if target == "os.system" else ("sample",):
        outcome = noising(command, f"checkpoint={bad}")
        assert outcome.code == 2
        assert f"its config names {target}, which is " in outcome.err
        assert ("set NOISING_ALLOW=" in outcome.err) == target.startswith("torch.")


RUNS = {"_target_": "os.mkdir", "path": "broken_into"}


@pytest.mark.parametrize(
    "data",
    [
        {"_target_": "noising.runs.environment._ask_git", "_args_": [".", "-c", "alias.x=!mkdir broken_into", "x"]},
        {"_target_": "noising.runs.folder._write", "path": "broken_into", "text": "x"},
        {"_target_": "noising.config.instantiate.make", "_args_": [RUNS, "data"]},
        "${oc.create:{_target_: os.mkdir, path: broken_into}}",
        "${oc.decode:'{_target_: os.mkdir, path: broken_into}'}",
    ],
    ids=["git", "write", "make", "create", "decode"],
)
def test_no_way_round_what_is_trusted(
    data: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noising's own functions that act for whoever calls them, and nodes that only appear when the config is read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOISING_ALLOW", "noising,noising.training")
    config = {**load_checkpoint(Run(trained).last_checkpoint)["config"], "data": data}
    said = ""
    try:
        _ = package.load(changed(trained, tmp_path / "bad.ckpt", config=config)).data
    except (ConfigError, AttributeError) as error:
        said = str(error)
    assert not (tmp_path / "broken_into").exists()
    assert "bad.ckpt: its config" in said


def test_a_config_that_is_yaml_in_a_string_is_refused(trained: Path, tmp_path: Path) -> None:
    bad = changed(trained, tmp_path / "bad.ckpt", config="data: {_target_: os.mkdir, path: broken_into}")
    with pytest.raises(ConfigError, match="its config is not a mapping"):
        package.load(bad)


def test_what_the_user_wrote_or_allows_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    config = {"schedule": {"_target_": "theirs_of_test.Lingering"}}
    with pytest.raises(ConfigError, match=r"^here: its config names theirs_of_test\.Lingering"):
        require_trusted(config, "here")
    monkeypatch.setenv("NOISING_ALLOW", "others, theirs_of_test")
    require_trusted(config, "here")
    monkeypatch.delenv("NOISING_ALLOW")
    (tmp_path / "theirs_of_test.py").write_text("import os\n\nclass Lingering: ...\n")
    require_trusted(config, "here")  # it lies in the user's own folder
    with pytest.raises(ConfigError, match=r"theirs_of_test\.os\.system, which is not"):
        require_trusted({"a": [{"_target_": "theirs_of_test.os.system"}]}, "here")


def test_metrics_and_callbacks_of_the_field_are_trusted_unless_they_read_files() -> None:
    kid: dict[str, Any] = {"_target_": "torchmetrics.image.KernelInceptionDistance", "subset_size": 50}
    early = {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "val/bound"}
    require_trusted({"metrics": kid, "callbacks": {"early": early}}, "here")
    fid = {"_target_": "torchmetrics.image.FrechetInceptionDistance", "feature_extractor_weights_path": "theirs.pth"}
    for bad in (fid, {"_target_": "torchmetrics.image.fid.torch.load"}, {"_target_": "torchmetrics.text.BERTScore"}):
        with pytest.raises(ConfigError, match="which is not of noising"):
            require_trusted({"metrics": bad}, "here")


def test_the_configs_of_the_project_are_trusted(trained: Path) -> None:
    require_trusted(load_checkpoint(Run(trained).last_checkpoint)["config"], "here")


def opened(path: Path) -> tuple[dict[str, Any] | None, str]:
    try:
        return load_checkpoint(path), ""
    except ValueError as error:
        return None, str(error)


def test_damage_never_goes_unseen(trained: Path, tmp_path: Path) -> None:
    """A hundred bits flipped, in the middle and in the directory at the end; fifty cuts."""
    whole, chance = Run(trained).last_checkpoint.read_bytes(), random.Random(0)
    good, path = load_checkpoint(Run(trained).last_checkpoint), tmp_path / "bad.ckpt"
    refused = 0
    for case in range(150):
        content = bytearray(whole)
        if case < 100:
            place = chance.randrange(len(content)) if case % 2 else len(content) - 1 - chance.randrange(20_000)
            content[place] ^= 1 << chance.randrange(8)
        else:
            content = content[: chance.randrange(len(content))]
        path.write_bytes(content)
        found, said = opened(path)
        if found is None:
            assert str(path) in said
            assert "\n" not in said
            refused += 1
        else:
            same(found, good)  # a bit that says nothing: padding, a date
    assert refused > 100


def test_a_later_format_is_refused_and_none_is_the_first(trained: Path, tmp_path: Path) -> None:
    later = changed(trained, tmp_path / "later.ckpt", noising_format=2)
    with pytest.raises(ConfigError, match="is of format 2, this noising reads format 1: use the one that wrote it"):
        package.load(later)
    content = load_checkpoint(Run(trained).last_checkpoint)
    assert content.pop("noising_format") == 1
    AtomicCheckpointIO().save_checkpoint(content, tmp_path / "first.ckpt")
    assert package.load(tmp_path / "first.ckpt").step == 20


OWN = """
from noising.diffusion.times import Uniform

class Asking(Uniform):
    def __init__(self, api_key: str):
        if not api_key.startswith("5ec4e7"):
            raise ValueError("that is not the key")
"""


def test_a_key_is_in_no_file_of_a_run(noising: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither W&B's own nor one that an option takes, which a checkpoint is loaded with all the same."""
    wandb, own = "abcdef" * 6 + "0123", "5ec4e7" * 7
    monkeypatch.setenv("WANDB_API_KEY", wandb)
    monkeypatch.setenv("KEY_OF_TEST", own)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "asking_of_test.py").write_text(OWN)
    options = ["trainer.max_steps=5", "trainer.val_check_interval=5", "logger=[csv,wandb]", "hydra.run.dir=run"]
    options += ["times=uniform", "times._target_=asking_of_test.Asking", "+times.api_key=${oc.env:KEY_OF_TEST}"]
    outcome = noising("train", *SMALL, *options)
    assert outcome.code == 0, outcome.err
    assert noising("sample", "checkpoint=run", "n=1", "hydra.run.dir=drawn").code == 0
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("wandb" in str(path) for path in files)
    assert [path for path in files if any(key.encode() in path.read_bytes() for key in (wandb, own))] == []
    monkeypatch.delenv("KEY_OF_TEST")
    missing = noising("sample", "checkpoint=run", "n=1")
    assert missing.code == 2
    assert missing.err.startswith("error: times: ")
    assert "Environment variable 'KEY_OF_TEST' not found" in missing.err


@pytest.mark.parametrize(
    "option",
    [
        "times=uniform times._target_=asking_of_test.Asking +times.api_key=5ec4e7",
        "tags=['https://me:5ec4e7@host']",
        "+hydra.job.env_set.MY_API_KEY=5ec4e7",
    ],
)
def test_a_key_that_would_be_written_is_refused(
    option: str, noising: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "asking_of_test.py").write_text(OWN)
    outcome = noising("train", *option.split())
    assert outcome.code == 2
    assert "is a secret, by its name or form, and would be in the run's files" in outcome.err
    assert not (tmp_path / "runs").exists()
