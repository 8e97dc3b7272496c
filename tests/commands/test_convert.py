"""convert: files of the authors' own code become runs, runs become such files, and what does not fit is not written."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from noising.diffusion.samplers import DDIM
from noising.trained import load
from tests.commands.helpers import images
from tests.helpers import Command
from tests.interchange.helpers import FOLDER, fixture

HEADS = {  # what the files do not tell
    "adm_legacyorder": ["file.head_width=8", "file.groups=8"],
    "adm_neworder_class_sigma": ["file.head_width=16", "file.new_attention_order=true"],
    "ddpm_diffusers": [],
    "edm_adm_class": ["file.head_width=8"],
    "edm_ddpmpp_class_augment": ["augmentation=edm"],
    "iddpm_shiftonly": ["file.heads=1", "file.groups=8"],
    "sde_ddpmpp_rectifiedflow": [],
}


@pytest.fixture
def converted(noising: Command, tmp_path: Path) -> Any:
    """converted(name, *options): the outcome for a fixture, on images of its size."""
    (tmp_path / "images").mkdir()

    def convert(name: str, *options: str, file: str = "") -> Any:
        given = fixture(name)
        file = file or str(FOLDER / f"{name}.safetensors")
        classes = next((len(w) for key, w in given.weights.items() if key == "label_emb.weight"), 0)
        classes = classes or given.facts["constructor"].get("label_dim", 0)
        learned = given.weights.get("out.2.bias", torch.zeros(3)).numel() == 6
        data = images(tmp_path, given.side, classes)
        variance = ["variance=learned_range", "objective=hybrid"] if learned else []
        return noising("convert", f"weights={file}", *data, *variance, *HEADS[name], "hydra.run.dir=run", *options)

    return convert


@pytest.mark.parametrize("name", HEADS)
def test_a_file_becomes_a_run_where_its_outputs_agree(name: str, converted: Any, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    if name == "ddpm_diffusers":  # its folder has its options
        config = tmp_path / "file" / "config.json"
        config.parent.mkdir()
        config.write_text(json.dumps(fixture(name).facts["constructor"]))
        save_file(fixture(name).weights, config.parent / "model.safetensors")
    file = str(config.parent) if name == "ddpm_diffusers" else ""
    outcome = converted(name, f"check={FOLDER / name}.safetensors", file=file)
    assert outcome.code == 0, outcome.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished"
    outputs = [row["measured"] for row in summary["converted"]["checks"] if row["check"].startswith("outputs of")]
    assert outputs
    assert all(float(difference) < 2e-5 for difference in outputs)
    run = load(tmp_path / "run", trusted=True)
    given = fixture(name)
    assert sum(parameter.numel() for parameter in run.denoiser.model.parameters()) == given.facts["parameters"]
    assert run.source["converted"]["layout"] == summary["converted"]["layout"]


def test_another_order_of_rows_is_not_written(converted: Any, tmp_path: Path) -> None:
    check = f"check={FOLDER / 'adm_legacyorder'}.safetensors"
    outcome = converted("adm_legacyorder", check, "file.new_attention_order=true", "unchecked=true")
    assert outcome.code == 2
    assert "nothing is written, since a check does not hold" in outcome.err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_random_weights_do_not_predict_noise(converted: Any, tmp_path: Path) -> None:
    outcome = converted("iddpm_shiftonly")
    assert outcome.code == 2
    assert "since its noise is no better than a linear guess: are schedule, parameterization" in outcome.err
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert converted("iddpm_shiftonly", "unchecked=true").code == 0
    rows = json.loads((tmp_path / "run" / "summary.json").read_text())["converted"]["checks"]
    assert [row["holds"] for row in rows if "linear guess" in row["check"]] == ["no"] * 3


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose labels are DDPM's steps, trained for long enough to predict noise."""
    from tests.helpers import run_command

    folder = tmp_path_factory.mktemp("learned")
    options = [
        "trainer.max_steps=150",
        "trainer.val_check_interval=150",
        "callbacks.samples=null",
        "callbacks.quality=null",
        "validation_bound.times=4",
    ]
    options += ["bound=stratified", "bound.times=4", *THEORY]
    outcome = run_command("train", folder, *options, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    return folder / "run"


THEORY = ("experiment=null", "noise_label=discrete_step", "schedule=linear")


def test_a_run_goes_out_to_diffusers_and_comes_back(learned: Path, noising: Command, tmp_path: Path) -> None:
    """The pipeline opens, draws the same images by DDIM from the same noise, and the weights come back to the bit."""
    from diffusers import DDIMScheduler, DDPMPipeline

    assert noising("convert", f"checkpoint={learned}", "to=diffusers", "hydra.run.dir=out").code == 0
    pipeline: Any = DDPMPipeline.from_pretrained(str(tmp_path / "out"))
    scheduler: Any = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing", clip_sample=True)
    scheduler.set_timesteps(10)
    run = load(learned)
    first = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = first
    with torch.no_grad():
        for step in scheduler.timesteps:
            theirs = scheduler.step(
                pipeline.unet(theirs, step).sample, step, theirs, use_clipped_model_output=True
            ).prev_sample
        *_, last = DDIM(10, clip=1.0).path(run.denoiser, lambda: first)
    assert (last.x_t - theirs).abs().max() < 1e-4
    outcome = noising("convert", "weights=out", *THEORY, "hydra.run.dir=back")
    assert outcome.code == 0, outcome.err
    assert "outputs of diffusers' UNet2DModel" in outcome.out
    back = load(tmp_path / "back").denoiser.model.state_dict()
    assert all(torch.equal(back[name], weight) for name, weight in run.denoiser.model.state_dict().items())


@pytest.mark.parametrize("to", ["openai", "safetensors"])
def test_a_run_goes_out_to_a_file(to: str, learned: Path, noising: Command, tmp_path: Path) -> None:
    assert noising("convert", f"checkpoint={learned}", f"to={to}", "hydra.run.dir=out").code == 0
    stored, ours = load_file(tmp_path / "out" / "model.safetensors"), load(learned).denoiser.model.state_dict()
    if to == "safetensors":
        assert all(torch.equal(stored[name], weight) for name, weight in ours.items())
        assert json.loads((tmp_path / "out" / "config.json").read_text())["schedule"]["beta_end"] == 0.02
        return
    outcome = noising("convert", "weights=out/model.safetensors", *THEORY, "file.groups=8", "hydra.run.dir=back")
    assert outcome.code == 0, outcome.err
    back = load(tmp_path / "back").denoiser.model.state_dict()
    assert all(torch.equal(back[name], weight) for name, weight in ours.items())
    bounds = []
    for number, run in enumerate((learned, "back")):
        options = ["bound=stratified", "bound.times=4", "splits=[test]", f"hydra.run.dir=bound{number}"]
        outcome = noising("evaluate", f"checkpoint={run}", *options)
        assert outcome.code == 0, outcome.err
        summary = json.loads((tmp_path / f"bound{number}" / "summary.json").read_text())
        bounds.append(summary["test/bound"])
    assert bounds[0] == bounds[1]
    assert summary["cards"]["test/bound"]["converted"]["layout"] == "openai"


@pytest.mark.parametrize("to", ["edm", "score_sde"])
def test_score_sdes_network_goes_out_under_either_name(
    to: str, converted: Any, noising: Command, tmp_path: Path
) -> None:
    check = f"check={FOLDER / 'sde_ddpmpp_rectifiedflow'}.safetensors"
    assert converted("sde_ddpmpp_rectifiedflow", check).code == 0
    outcome = noising("convert", "checkpoint=run", f"to={to}", "hydra.run.dir=file")
    assert outcome.code == 0, outcome.err
    stored = load_file(tmp_path / "file" / "model.safetensors")
    if to == "score_sde":
        weights = fixture("sde_ddpmpp_rectifiedflow").weights
        assert all(torch.equal(stored[name], weight) for name, weight in weights.items() if "sigmas" not in name)
    file = str(tmp_path / "file" / "model.safetensors")
    outcome = converted("sde_ddpmpp_rectifiedflow", check, "hydra.run.dir=again", file=file)
    assert outcome.code == 0, outcome.err


def test_a_trainings_file_gives_its_averages_or_its_raw_weights(converted: Any, tmp_path: Path) -> None:
    """As score SDE and rectified flow store them: averages are a list, in the order of the named weights."""
    weights = fixture("sde_ddpmpp_rectifiedflow").weights
    averages = [weight + 1 for name, weight in weights.items() if not name.endswith("sigmas")]
    ema = {"decay": 0.999999, "num_updates": 7, "shadow_params": averages}
    torch.save({"model": weights, "ema": ema, "step": 7}, tmp_path / "checkpoint.pth")
    for averaged, shift in (("true", 1.0), ("false", 0.0)):
        folder = f"hydra.run.dir=run_{averaged}"
        file = str(tmp_path / "checkpoint.pth")
        outcome = converted("sde_ddpmpp_rectifiedflow", f"averaged={averaged}", "unchecked=true", folder, file=file)
        assert outcome.code == 0, outcome.err
        first = load(tmp_path / f"run_{averaged}", trusted=True).denoiser.model.first.bias
        torch.testing.assert_close(first, weights["module.all_modules.2.bias"] + shift)


class Evil:
    """What runs code when it is opened."""

    def __reduce__(self) -> Any:
        return (Path("opened").touch, ())


def test_files_that_are_no_weights_are_refused_in_a_line(noising: Command, tmp_path: Path, learned: Path) -> None:
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "cut.safetensors").write_bytes((FOLDER / "torchcfm.safetensors").read_bytes()[:1000])
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "empty").mkdir()
    for words, message in (
        (["weights=none.pt"], "weights=none.pt: there is no such file or folder"),
        (["weights=evil.pkl"], "is a pickle, which runs the code in it when it is opened: export it"),
        (["weights=evil.pt"], "(code in it was not run)"),
        (["weights=cut.safetensors"], "it is no safetensors file, or a damaged one"),
        (["weights=other.safetensors"], "its 1 tensors (a, ...) are in none of the layouts openai, edm"),
        ([f"weights={FOLDER / 'torchcfm.safetensors'}", "layout=edm"], "are not of layout=edm: leave layout out"),
        ([f"weights={FOLDER / 'sde_ncsnpp_ve.safetensors'}"], "NCSN++ is trained on images in [0, 1]"),
        ([f"weights={FOLDER / 'ddpm_diffusers.safetensors'}"], "config.json is missing beside"),
        (["weights=empty"], "expected diffusion_pytorch_model.safetensors or"),
        ([], "convert reads weights=FILE, or writes checkpoint=RUN to=LAYOUT"),
        ([f"checkpoint={learned}"], "to is missing: add to=diffusers"),
        ([f"checkpoint={learned}", "to=edm"], "EDM's ADM halves and doubles in residual blocks"),
        ([f"checkpoint={learned}", "to=score_sde"], "this layout is of SongUNet, the run's network is a UNet"),
        ([f"checkpoint={learned}", "to=tensorflow"], "to must be diffusers, openai, edm"),
        ([f"weights={FOLDER / 'torchcfm.safetensors'}"], "takes images of 3 channels, data=digits has 1"),
    ):
        outcome = noising("convert", *words, "hydra.run.dir=refused")
        assert outcome.code == 2, words
        assert message in outcome.err, outcome.err
        assert len(outcome.err.strip().splitlines()) == 1
    assert not (tmp_path / "opened").exists()
    assert not (tmp_path / "refused" / "checkpoints").exists()


def test_a_check_of_another_network_and_numbers_that_are_none_are_refused(converted: Any, tmp_path: Path) -> None:
    for name in ("adm_neworder_class_sigma", "torchcfm"):  # of other images, of classes
        outcome = converted("iddpm_shiftonly", f"check={FOLDER / name}.safetensors")
        assert outcome.code == 2
        assert "is not of this network" in outcome.err or "nothing is written" in outcome.err
        assert len(outcome.err.strip().splitlines()) == 1
    weights = fixture("iddpm_shiftonly").weights
    weights["out.2.bias"][1] = torch.nan
    save_file(weights, tmp_path / "lost.safetensors")
    outcome = converted("iddpm_shiftonly", "unchecked=true", file=str(tmp_path / "lost.safetensors"))
    assert outcome.code == 2
    assert "out.2.bias" in outcome.out
    outcome = converted("iddpm_shiftonly", "file.groups=32")
    assert "width must be a multiple of groups=32, got 16; heads and groups are file.heads, file.groups" in outcome.err


def test_what_a_file_is_told_is_asked_for(converted: Any, noising: Command, tmp_path: Path) -> None:
    outcome = converted("edm_ddpmpp_class_augment", "label_dropout=null")
    assert "is trained with 5 classes: use label_dropout=0.0" in outcome.err
    outcome = converted("edm_ddpmpp_class_augment", "augmentation=null")
    assert "is trained with 9 augmentation labels, not 0: use augmentation=edm" in outcome.err
    outcome = converted("adm_neworder_class_sigma", "variance=fixed_small", "objective=regression")
    assert "gives 6 channels, not 3: use variance=learned_range" in outcome.err
    outcome = converted("iddpm_shiftonly", "parameters=5")
    assert "nothing is written" in outcome.err
