"""Files from strangers: no code in them is run, no damage goes unseen, and a config names nobody else's code."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

import noising as package
from noising.config.choices import conf_dir
from noising.errors import ConfigError
from noising.runs.folder import Run
from noising.runs.trust import require_trusted
from noising.training.checkpoints import AtomicCheckpointIO, load_checkpoint
from tests.helpers import SMALL, Command, Outcome, same


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
        "theirs.run",
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
        assert ("allow=" in outcome.err) == (target == "theirs.run")


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


def files_of(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


CALL = "{_target_: subprocess.call, args: [touch, PWNED]}"


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        (f"+callbacks.x={CALL}", "subprocess.call, which is part of Python"),
        (f"+callbacks={{x: {{y: [{CALL}]}}}}", "subprocess.call, which is part of Python"),
        (f"+callbacks.x=null,{CALL}", "subprocess.call, which is part of Python"),
        ("+callbacks.x=tag(t,choice(a,{_target_: subprocess.call}))", "subprocess.call, which is part of Python"),
        ("+callbacks.x._target_=subprocess.call", "subprocess.call, which is part of Python"),
        ("data._target_='subprocess.call'", "subprocess.call, which is part of Python"),
        ("data._target_=noising.runs.folder._write", "noising.runs.folder._write, which is not a choice that noising"),
        ("data._target_=theirs.Data", r"theirs.Data, which is not part of noising: if you trust it, add allow=theirs"),
        ("+callbacks.x='${oc.create:{_target_: subprocess.call}}'", "holds an interpolation"),
        ("+callbacks.x={a: ['${oc.env:HOME}']}", "holds an interpolation"),
        ("seed=${oc.env:HOME}", "holds an interpolation"),
        ("tags=['${model}']", "holds an interpolation"),
        ("+data.token=${oc.env:HOME}", "reads the environment variable HOME into data.token: if you trust it"),
        ("+hydra.callbacks.x._target_=subprocess.call", "sets 'hydra.callbacks.x._target_'"),
        ("hydra.searchpath=[file:///tmp]", "sets 'hydra.searchpath'"),
        ("hydra/launcher=joblib", "sets 'hydra/launcher'"),
        ("++hydra={searchpath: [/tmp]}", "sets 'hydra'"),
        ("logger@hydra.callbacks=csv", "sets 'logger@hydra.callbacks'"),
        ("allow=theirs", "sets 'allow'"),
        ("a$b=1", r"sets 'a\$b'"),
        ("callbacks[x]=1", "which is no override"),
        ("metrics.dinov2_repo=clone", r"names code to run \(metrics.dinov2_repo\)"),
        ("+metrics.metric.feature_extractor_weights_path=w", "names code to run"),
        (
            "+metrics={a: {_target_: torchmetrics.image.FrechetInceptionDistance, feature_extractor_weights_path: w}}",
            r"names code to run \(metrics.a.feature_extractor_weights_path\)",
        ),
    ],
)
def test_a_record_of_options_passes_the_gate(
    word: str, reason: str, trained: Path, noising: Command, tmp_path: Path
) -> None:
    """Refused in one line, before anything is composed, and nothing is left behind; a sweep's record too."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    record = run / ".hydra" / "overrides.yaml"
    words = [*yaml.safe_load(record.read_text()), word]
    record.write_text(yaml.safe_dump(words))
    (tmp_path / "swept").mkdir()
    (tmp_path / "swept" / "multirun.yaml").write_text(yaml.safe_dump({"hydra": {"overrides": {"task": words}}}))
    before = files_of(tmp_path)
    for command in (["resume=run"], ["-m", "resume=swept"]):
        outcome = noising("train", *command)
        assert outcome.code == 2
        assert re.match(rf"error: {command[-1]}: its record .*{reason}", outcome.err), outcome.err
        assert outcome.err.count("\n") == 1
    assert files_of(tmp_path) == before


def test_a_folder_to_resume_holds_its_own_files(
    trained: Path, noising: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe would be waited for, and train.log that is a link would be written wherever it leads."""
    run, outside = tmp_path / "run", tmp_path / "bashrc"
    outside.write_text("ls")
    shutil.copytree(trained, run)
    shutil.move(run / "checkpoints", tmp_path / "disk")
    (run / "checkpoints").symlink_to(tmp_path / "disk")
    (run / "latest").symlink_to(run / "samples")
    (run / "wandb" / "logs").mkdir(parents=True)
    (run / "wandb" / "logs" / "debug-core.log").symlink_to(outside)  # as W&B does
    assert noising("train", "resume=run").code == 0
    for name in ("train.log", "metrics.jsonl", ".hydra/hydra.yaml", "figures"):
        before = run / f"{name}.before"
        shutil.move(run / name, before)
        (run / name).symlink_to(outside if name != "figures" else tmp_path / "disk")
        outcome = noising("train", "resume=run", "trainer.max_steps=30")
        assert (outcome.code, "links out of the run's folder" in outcome.err) == (2, True), outcome.err
        (run / name).unlink()
        os.mkfifo(run / name)
        outcome = noising("train", "resume=run", "trainer.max_steps=30")
        assert (outcome.code, "is not a regular file" in outcome.err) == (2, True), outcome.err
        (run / name).unlink()
        shutil.move(before, run / name)
    assert outside.read_text() == "ls"
    (run / "summary.json").unlink()
    os.mkfifo(run / "summary.json")
    for words in (["compare", "run", str(trained)], ["evaluate", "checkpoint=run/summary.json"]):
        assert noising(*words).code == 2


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_a_checkpoint_makes_no_folder_and_downloads_nothing(
    name: str, trained: Path, noising: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision.datasets  # type: ignore[import-untyped]

    fetched: list[Any] = []
    for module in (torchvision.datasets.mnist, torchvision.datasets.cifar):
        monkeypatch.setattr(module, "download_and_extract_archive", lambda *given, **_: fetched.append(given))
    config = load_checkpoint(Run(trained).last_checkpoint)["config"]
    node = yaml.safe_load((conf_dir() / "data" / f"{name}.yaml").read_text())
    config["data"] = {**node, "root": str(tmp_path / "theirs" / "root")}
    outcome = noising("sample", f"checkpoint={changed(trained, tmp_path / 'bad.ckpt', config=config)}", "n=1")
    assert outcome.code == 2
    assert re.match(rf"error: data.root={tmp_path}/theirs/root: \w+ cannot be read: put .* there", outcome.err)
    assert fetched == []
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize("checkpoint", [".", "checkpoints", "checkpoints/last.ckpt"])
def test_code_beside_a_runs_checkpoints_came_with_it(
    checkpoint: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "theirs_beside.py").write_text("class Cosine: ...\n")
    config = load_checkpoint(Run(trained).last_checkpoint)["config"]
    (tmp_path / "checkpoints").mkdir()
    changed(trained, Run(".").last_checkpoint, config=config | {"schedule": {"_target_": "theirs_beside.Cosine"}})
    with pytest.raises(ConfigError, match=r"theirs_beside\.Cosine, which is not part of noising: if you trust it"):
        package.load(checkpoint)


def test_a_choice_is_no_path(trained: Path, noising: Command, tmp_path: Path) -> None:
    """A group's choice that leaves the folders of configs would be any YAML, with any `_target_`."""
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "evil.yaml").write_text("_target_: subprocess.call\nargs: [touch, PWNED]\n")
    record = tmp_path / "run" / ".hydra" / "overrides.yaml"
    climb = "../" * 30
    for choice in (tmp_path / "evil", f"{climb}{tmp_path / 'evil'}", f"/{climb}{tmp_path / 'evil'}"):
        record.write_text(yaml.safe_dump([f"model={choice}"]))
        outcome = noising("train", "resume=run")
        assert outcome.code == 2
        assert "no such choice" in outcome.err
    assert not (tmp_path / "PWNED").exists()


def test_what_the_user_writes_is_not_of_the_record(
    trained: Path, noising: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A word given beside resume takes the place of the record's, and `allow=` lets that pass."""
    monkeypatch.setenv("TOKEN_OF_TEST", "1")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "theirs_of_record.py").write_text(
        "from noising.diffusion.times import Uniform\n\n\nclass Times(Uniform):\n"
        "    def __init__(self, token: str) -> None: ...\n"
    )
    run = tmp_path / "run"
    options = ["times=uniform", "times._target_=theirs_of_record.Times", "+times.token=${oc.env:TOKEN_OF_TEST}"]
    assert noising("train", *SMALL, *options, "trainer.max_steps=5", "hydra.run.dir=run").code == 0
    refused = noising("train", f"resume={run}")
    assert (
        "theirs_of_record.Times, which is not part of noising: if you trust it, add allow=theirs_of_record"
        in refused.err
    )
    refused = noising("train", f"resume={run}", "allow=theirs_of_record")
    assert "if you trust it, add allow=TOKEN_OF_TEST" in refused.err
    assert noising("train", f"resume={run}", "allow=theirs_of_record,TOKEN_OF_TEST").code == 0
    assert noising("train", f"resume={run}", *options[1:]).code == 0
    assert "NOISING_ALLOW" not in os.environ
    assert "allow" not in (run / ".hydra" / "overrides.yaml").read_text()


def test_a_damaged_record_is_one_line(trained: Path, noising: Command, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    record = tmp_path / "run" / ".hydra" / "overrides.yaml"
    for text in ("a: b", "- [", "3", "- {a: b}", "[" * 5000):
        record.write_text(text)
        outcome = noising("train", "resume=run")
        assert outcome.code == 2
        assert outcome.err.startswith("error: resume=run: its record")


def test_what_a_run_says_is_text(trained: Path, noising: Command, tmp_path: Path) -> None:
    """Strings of its config, its summary and its records, and its folder's name: in tables, lines and errors."""
    shutil.copytree(trained, tmp_path / "[" / "b]")
    shutil.copytree(trained, tmp_path / "\x1b[2Jb")
    for folder in (tmp_path / "[" / "b]", tmp_path / "\x1b[2Jb"):
        run = Run(folder)
        config = run.config | {"seed": f"\x1b]0;owned\a{folder.name}", "tags": ["[red]y[/b]"], "[/i]": folder.name}
        run.config_file.write_text(yaml.safe_dump(config))
        summary = run.summary | {
            "status": "[blink]\x1b[5m",
            "test/[/u]\n\x9b": 1.5,
            "ended": "\x1b[8mhidden",
        }
        summary["cards"]["test/bound"]["estimator"] = f"\x1b[2J[/b]{folder.name}"
        run.summary_file.write_text(json.dumps(summary))
    outcome = noising("compare", "[/b]", "\x1b[2Jb", "hydra.run.dir='\x1b[3mcompared'")
    assert outcome.code == 0, outcome.err
    for words in ("]0;owned", "[/i]", "[blink]", "[/b]"):
        assert words in outcome.out
    assert "comparison.csv" in outcome.out
    (tmp_path / "\x1b[2Jb" / "summary.json").write_text(json.dumps(summary | {"status": "finished"}))
    shutil.copy(Run(trained).config_file, tmp_path / "\x1b[2Jb")
    finished = noising("train", "resume='\x1b[2Jb'")
    assert "[2J[/b]" in finished.out
    assert "training ended [8mhidden" in finished.out
    for name in ("\x1b[2J\nnowhere", "\x1b[2Jb"):
        (tmp_path / "\x1b[2Jb" / "config.yaml").write_text("[")
        refused = noising("compare", "[/b]", name)
        assert refused.code == 2
        assert refused.err.count("\n") == 1
        finished = Outcome(0, finished.out + refused.out, finished.err + refused.err)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", outcome.out + outcome.err + finished.out + finished.err)


def test_a_config_that_is_yaml_in_a_string_is_refused(trained: Path, tmp_path: Path) -> None:
    bad = changed(trained, tmp_path / "bad.ckpt", config="data: {_target_: os.mkdir, path: broken_into}")
    with pytest.raises(ConfigError, match="its config is not a mapping"):
        package.load(bad)


def test_what_the_user_wrote_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions, classes and packages that are defined in the current folder, and nothing that they have imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    config = {"schedule": {"_target_": "mine_of_test.Lingering"}}
    with pytest.raises(ConfigError, match=r"^here: its config names mine_of_test\.Lingering, which is not part of"):
        require_trusted(config, "here")
    text = "import os\nfrom os import system\n\ndef weighting(level, gain): ...\n\nclass Lingering: ...\n"
    (tmp_path / "mine_of_test.py").write_text(text)
    require_trusted(config, "here")
    require_trusted({"weighting": {"_target_": "mine_of_test.weighting", "_partial_": True}}, "here")
    package = tmp_path / "parts_of_test"
    package.mkdir()
    (package / "__init__.py").write_text("from parts_of_test.nets import Net\n")
    (package / "nets.py").write_text("class Net: ...\n")
    require_trusted({"model": {"_target_": "parts_of_test.Net"}}, "here")
    require_trusted({"model": {"_target_": "parts_of_test.nets.Net"}}, "here")
    for target in ("os.system", "system"):
        with pytest.raises(ConfigError, match=rf"mine_of_test\.{target}, which is not part of noising, and is not"):
            require_trusted({"a": [{"_target_": f"mine_of_test.{target}"}]}, "here")
    for place in (package / "run", package / "run" / "last.ckpt", tmp_path):
        with pytest.raises(ConfigError, match=r"parts_of_test\.Net, which is not part of noising: if you trust it"):
            require_trusted({"model": {"_target_": "parts_of_test.Net"}}, "here", place)  # it came with the run


@pytest.mark.parametrize(
    "name", ["profile", "timeit", "pdb", "__main__", "tests", "train", "scripts", "conftest", "setup"]
)
def test_a_file_name_is_no_key_to_another_module(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the current folder trusts no module of that name elsewhere, Python's own and programs never."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("NOISING_ALLOW", name)
    (tmp_path / f"{name}.py").write_text("class Lingering: ...\nopen('BROKEN_INTO', 'w')\n")
    for target in (f"{name}.run", f"{name}.Lingering", f"{name}.conftest.run_command"):
        with pytest.raises(ConfigError, match=r"which is (part of Python|a program or an internal name): no run"):
            require_trusted({"data": {"_target_": target, "statement": "open('BROKEN_INTO', 'w')"}}, "here")
    assert not (tmp_path / "BROKEN_INTO").exists()


def test_an_installed_module_is_not_the_users_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python would import the one that comes first on its path; found without importing it."""
    monkeypatch.chdir(tmp_path)
    for folder in ("first", "."):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "twice_of_test.py").write_text("open('BROKEN_INTO', 'w')\ndef run(): ...\n")
        monkeypatch.syspath_prepend(tmp_path / folder)
    monkeypatch.syspath_prepend(tmp_path / "first")
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("")
    for target in ("twice_of_test.run", "torchvision.datasets.utils.download_url"):
        with pytest.raises(ConfigError, match=f"{target}, which is not part of noising: if you trust it, add allow="):
            require_trusted({"a": {"_target_": target}}, "here")
    assert not (tmp_path / "BROKEN_INTO").exists()
    assert "twice_of_test" not in sys.modules


THEIRS = """
import subprocess
from subprocess import Popen
import lightning.pytorch as pl
import torch
import torchmetrics
from noising.diffusion.schedules import Schedule
from noising.errors import UsageError

class Net(torch.nn.Module): ...
class Data(torch.utils.data.Dataset): ...
class Sharp(torchmetrics.Metric): ...
class Descent(torch.optim.SGD): ...
class Rate(torch.optim.lr_scheduler.StepLR): ...
class Watching(pl.Callback): ...
class Log(pl.loggers.CSVLogger): ...
class Lingering(Schedule): ...
class Shell: ...
class Failure(UsageError): ...
def clean(path): ...
weighting = lambda level, gain: 1
net = Net()
"""


def test_an_allowed_module_gives_classes_of_the_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "theirs_of_test.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    monkeypatch.setenv("NOISING_ALLOW", "others, theirs_of_test")
    for name in ("Net", "Data", "Sharp", "Descent", "Rate", "Watching", "Log", "Lingering"):
        require_trusted({"a": {"_target_": f"theirs_of_test.{name}"}}, "here")
    for name in (
        *("Shell", "Failure", "clean", "weighting", "net", "net.forward", "Net.load_state_dict", "Popen"),
        *("subprocess.call", "torch.load", "torch.hub.load", "UsageError"),
    ):
        with pytest.raises(ConfigError, match=f"theirs_of_test.{name}, which is not part of noising: from"):
            require_trusted({"a": {"_target_": f"theirs_of_test.{name}"}}, "here")
    for name in ("__main__.Net", "tests.Net", "tests.conftest.Net", "Net.__init__", "clean.__globals__.get"):
        with pytest.raises(ConfigError, match=f"theirs_of_test.{name}, which is a program or an internal"):
            require_trusted({"a": {"_target_": f"theirs_of_test.{name}"}}, "here")
    with pytest.raises(ConfigError, match=r"cannot import _target_ 'theirs_of_test\.Nothing'"):
        require_trusted({"a": {"_target_": "theirs_of_test.Nothing"}}, "here")


def test_metrics_and_callbacks_of_the_field_are_trusted_unless_they_read_files() -> None:
    kid: dict[str, Any] = {"_target_": "torchmetrics.image.KernelInceptionDistance", "subset_size": 50}
    early = {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "val/bound"}
    require_trusted({"metrics": kid, "callbacks": {"early": early}}, "here")
    fid = {"_target_": "torchmetrics.image.FrechetInceptionDistance", "feature_extractor_weights_path": "theirs.pth"}
    for bad in (fid, {"_target_": "torchmetrics.image.fid.torch.load"}, {"_target_": "torchmetrics.text.BERTScore"}):
        with pytest.raises(ConfigError, match="which is not part of noising"):
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
    with pytest.raises(ConfigError, match="has format 2, but this noising reads format 1: use the version"):
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
    withheld = noising("sample", "checkpoint=run", "n=1")
    assert withheld.code == 2
    assert withheld.err == (
        "error: times: the run's files read the environment variable KEY_OF_TEST: if you trust them, "
        "add allow=KEY_OF_TEST\n"
    )
    assert noising("sample", "checkpoint=run", "n=1", "allow=KEY_OF_TEST", "hydra.run.dir=drawn").code == 0
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("wandb" in str(path) for path in files)
    assert [path for path in files if any(key.encode() in path.read_bytes() for key in (wandb, own))] == []
    monkeypatch.delenv("KEY_OF_TEST")
    missing = noising("sample", "checkpoint=run", "n=1", "allow=KEY_OF_TEST")
    assert missing.code == 2
    assert missing.err.startswith("error: times: ")
    assert "Environment variable 'KEY_OF_TEST' not found" in missing.err


@pytest.mark.parametrize("path", ["token", "auth.user", "tokens", "aws_access_key_id"])
def test_a_strangers_reference_is_not_resolved(
    path: str, trained: Path, noising: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where it is built, nor where a part that nobody builds holds it; and its value is printed nowhere."""
    monkeypatch.setenv("SECRET_OF_TEST", "5ec4e7")
    config = load_checkpoint(Run(trained).last_checkpoint)["config"]
    name, _, last = path.partition(".")
    value: Any = {last: "${oc.env:SECRET_OF_TEST}"} if last else "${oc.env:SECRET_OF_TEST}"
    value = ["${oc.env:SECRET_OF_TEST}"] if name == "tokens" else value
    data = {**config["data"], name: value}
    outcome = noising("sample", f"checkpoint={changed(trained, tmp_path / 'b.ckpt', config={**config, 'data': data})}")
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert f"its config: data.{name}: no such option" in outcome.err  # before anything is built or resolved
    assert "5ec4e7" not in outcome.err + outcome.out
    config["logger"]["theirs"] = {name: value}
    run = package.load(changed(trained, tmp_path / "logged.ckpt", config=config))
    assert run.denoiser.schedule is not None
    with pytest.raises(Exception, match="allow=SECRET_OF_TEST"):
        OmegaConf.to_container(run.config, resolve=True)


@pytest.mark.parametrize(
    "option",
    [
        "+logger.mine.passphrase=5ec4e7",
        "+logger.mine={tokens:[5ec4e7]}",
        "+logger.mine.secrets.hub=5ec4e7",
        "tags=['https://host/x?token=5ec4e7']",
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
    assert "looks like a secret, and would be written to the run's files" in outcome.err
    assert not (tmp_path / "runs").exists()
