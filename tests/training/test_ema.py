"""The averaged weights against the closed form, in checkpoints, and around validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from noising.training.ema import EMA, HalfLifeEMA, PowerFunctionEMA, power_exponent
from tests.interchange.helpers import fixture


class Numbers(Dataset[Tensor]):
    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> Tensor:
        return torch.ones(1)


class Denoiser(nn.Module):
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.tied = self.weight
        self.register_buffer("count", torch.zeros((), dtype=torch.long))


class Falling(LightningModule):
    """Loss = sum of the weights under plain SGD: after k steps every weight is -0.5 k."""

    def __init__(self, seen: list[float] | None = None, fail_in_validation: bool = False) -> None:
        super().__init__()
        self.denoiser = Denoiser()
        self.seen = [] if seen is None else seen
        self.fail = fail_in_validation

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.denoiser.count += 1
        return self.denoiser.weight.sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.seen.append(float(self.denoiser.weight[0]))
        if self.fail:
            raise RuntimeError("validation fails")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def trainer(folder: Path, steps: int, ema: EMA, **options: Any) -> Trainer:
    options = {"num_sanity_val_steps": 0, "limit_val_batches": 1, **options}
    return Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        devices=1,
        callbacks=[ema],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )


def loader() -> DataLoader[Tensor]:
    return DataLoader(Numbers(), batch_size=1)


def closed_form(steps: int, decay: float) -> float:
    average = 0.0
    for n in range(steps):
        d = min(decay, (1 + n) / (10 + n))
        average = d * average + (1 - d) * (-0.5 * (n + 1))
    return average


@pytest.mark.parametrize(("accumulate", "decay"), [(1, 0.9999), (2, 0.9999), (2, 0.3), (1, 0.0)])
def test_average_is_the_closed_form(tmp_path: Path, accumulate: int, decay: float) -> None:
    ema, module = EMA(decay), Falling()
    trainer(tmp_path, 12, ema, accumulate_grad_batches=accumulate, limit_val_batches=0).fit(module, loader())
    assert ema.updates == 12
    assert module.denoiser.weight[0].item() == -6.0
    torch.testing.assert_close(ema.weights["weight"], torch.full((3,), closed_form(12, decay)))
    assert module.denoiser.count == 12 * accumulate  # an integer buffer is left alone


def test_validation_sees_the_average_and_training_goes_on_raw(tmp_path: Path) -> None:
    module = Falling()
    trainer(tmp_path, 6, EMA(0.9), val_check_interval=3, check_val_every_n_epoch=None).fit(module, loader(), loader())
    assert module.seen == pytest.approx([closed_form(3, 0.9), closed_form(6, 0.9)], rel=1e-6)
    assert module.denoiser.weight[0].item() == -3.0


def test_checkpoint_written_amid_validation_holds_raw_weights(tmp_path: Path) -> None:
    class Saving(Falling):
        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            self.trainer.save_checkpoint(tmp_path / "amid.ckpt")
            self.trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)

    ema = EMA(0.9)
    trainer(tmp_path, 3, ema, val_check_interval=3, check_val_every_n_epoch=None).fit(Saving(), loader(), loader())
    for name in ("amid.ckpt", "weights.ckpt"):
        state = torch.load(tmp_path / name, weights_only=True)["state_dict"]
        for key in ("denoiser.weight", "denoiser.tied"):
            torch.testing.assert_close(state[key], torch.full((3,), -1.5), rtol=0, atol=0)
    saved = torch.load(tmp_path / "amid.ckpt", weights_only=True)["ema"]
    assert (saved["decay"], saved["updates"], list(saved["weights"])) == (0.9, 3, ["weight"])
    torch.testing.assert_close(saved["weights"]["weight"], torch.full((3,), closed_form(3, 0.9)))


def test_exceptions_restore_the_raw_weights(tmp_path: Path) -> None:
    module, ema = Falling(fail_in_validation=True), EMA(0.9)
    with pytest.raises(RuntimeError, match="validation fails"):
        trainer(tmp_path, 3, ema, val_check_interval=3, check_val_every_n_epoch=None).fit(module, loader(), loader())
    assert module.denoiser.weight[0].item() == -1.5

    def compute_and_fail() -> None:
        with ema.swapped(module.denoiser), ema.swapped(module.denoiser):
            module.seen.append(module.denoiser.weight[0].item())
            raise KeyError

    with pytest.raises(KeyError):
        compute_and_fail()
    assert module.seen[-1] == pytest.approx(closed_form(3, 0.9))
    assert module.denoiser.weight[0].item() == -1.5
    assert module.state_dict()["denoiser.weight"][0].item() == -1.5


def test_resumed_average_equals_the_uninterrupted_one_bitwise(tmp_path: Path) -> None:
    whole, first, second = EMA(0.99), EMA(0.99), EMA(0.99)
    trainer(tmp_path, 8, whole, limit_val_batches=0).fit(Falling(), loader())
    part = trainer(tmp_path, 5, first, limit_val_batches=0)
    part.fit(Falling(), loader())
    part.save_checkpoint(tmp_path / "five.ckpt")
    trainer(tmp_path, 8, second, limit_val_batches=0).fit(Falling(), loader(), ckpt_path=str(tmp_path / "five.ckpt"))
    assert second.updates == 8
    assert torch.equal(second.weights["weight"], whole.weights["weight"])


def test_average_of_half_precision_weights_is_kept_in_float32() -> None:
    module, ema = Falling(), EMA(0.5)
    module.denoiser.to(torch.bfloat16)
    ema.attach(module.denoiser)
    with torch.no_grad():
        module.denoiser.weight.fill_(1.0)
    ema.update(module.denoiser)
    assert ema.weights["weight"].dtype == torch.float32
    torch.testing.assert_close(ema.weights["weight"], torch.full((3,), 0.9))  # 1 - 1/10


def test_weights_of_another_network_are_refused() -> None:
    ema = EMA(0.5)
    ema.load({"ema": {"decay": 0.5, "updates": 1, "weights": {"weight": torch.zeros(4)}}})
    with pytest.raises(ValueError, match=r"weight has shape \(4,\) there, \(3,\) here"):
        ema.attach(Falling().denoiser)


@pytest.mark.parametrize("decay", [1.0, -0.1, 2.0, float("nan")])
def test_decay_outside_the_unit_interval_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=r"^decay must lie in \[0, 1\), got"):
        EMA(decay)


@pytest.mark.parametrize("batch", [64, 256])
def test_half_life_is_counted_in_images(batch: int) -> None:
    """Of two weights one then zero, half of the one is left after half_life images, whatever the batch."""
    denoiser = Denoiser()
    with torch.no_grad():
        denoiser.weight.fill_(1.0)
    ema = HalfLifeEMA(half_life=4096, ramp_up=None, batch_size=batch)
    ema.attach(denoiser)
    with torch.no_grad():
        denoiser.weight.zero_()
    for _ in range(4096 // batch):
        ema.update(denoiser)
    torch.testing.assert_close(ema.weights["weight"], torch.full((3,), 0.5), rtol=1e-5, atol=0)


def test_half_life_rises_with_the_images_seen() -> None:
    """EDM's: the first update is the weights themselves; after n images the half-life is at most ramp_up · n."""
    ema = HalfLifeEMA(half_life=1000, ramp_up=0.1, batch_size=100)
    assert ema.decay_now() == 0
    ema.updates = 50  # 5,000 images: a half-life of 500
    assert ema.decay_now() == pytest.approx(0.5 ** (100 / 500))
    ema.updates = 10_000
    assert ema.decay_now() == pytest.approx(0.5 ** (100 / 1000))
    assert ema.decay == pytest.approx(0.5 ** (100 / 1000))


@pytest.mark.parametrize(("option", "value"), [("half_life", 0), ("ramp_up", 0)])
def test_half_lives_that_are_none_are_named(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{option} must be above 0"):
        HalfLifeEMA(**{option: value})


EDM2 = "scalars/edm2_phema_lr_loss_sampler"


@pytest.mark.parametrize("std", [0.05, 0.1])
def test_a_power_function_is_the_average_of_edm2s_code(std: float) -> None:
    """Of six weights over 512 steps, at every snapshot that their code stored."""
    given = fixture(EDM2)
    denoiser, theta = Denoiser(), given.inputs["theta"]
    denoiser.weight = denoiser.tied = nn.Parameter(theta[0].float())
    ema = PowerFunctionEMA(std)
    assert ema.decay_now() == 0
    chosen = given.inputs["snapshot_std"] == std
    steps = (given.inputs["snapshot_nimg"][chosen] / 64).long().tolist()
    held = dict(zip(steps, given.outputs["snapshots"][chosen], strict=True))
    decays = []
    for step in range(1, 513):
        with torch.no_grad():
            denoiser.weight.copy_(theta[step])
        ema.update(denoiser)
        decays.append(ema.decay)
        if step in held:
            torch.testing.assert_close(ema.weights["weight"].double(), held[step], rtol=2e-6, atol=2e-6)
    assert len(held) == 16
    place = [0.05, 0.1].index(std)
    assert decays[:8] == pytest.approx(given.outputs["beta_first_steps"][place].tolist(), abs=1e-12)


@pytest.mark.parametrize(("std", "power"), [(0.05, 1), (0.075, 2), (0.2, 1)])
def test_a_power_function_of_the_time_has_its_closed_form(std: float, power: int) -> None:
    """θ(τ) = τ^m has the average (γ + 1)/(γ + 1 + m) t^m, whatever the length of the training."""
    denoiser, ema = Denoiser(), PowerFunctionEMA(std)
    for step in range(1, 2001):
        with torch.no_grad():
            denoiser.weight.fill_((step / 2000) ** power)
        ema.update(denoiser)
    gamma = ema.exponent
    assert float(ema.weights["weight"][0]) == pytest.approx((gamma + 1) / (gamma + 1 + power), rel=2e-3)


def test_the_exponent_is_that_of_the_standard_deviation() -> None:
    given = fixture(EDM2)
    exponents = [power_exponent(std) for std in given.inputs["table_std"].tolist()]
    assert exponents == pytest.approx(given.outputs["table_exponent"].tolist(), rel=1e-10)
    for std, gamma in ((0.05, 16.9722), (0.10, 6.9372), (0.075, 10.2891), (0.04, 21.9782), (0.13, 4.6036)):
        assert power_exponent(std) == pytest.approx(gamma, abs=5e-5)
        assert ((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5 == pytest.approx(std, rel=1e-5)
    assert power_exponent(12**-0.5) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("std", [0.0, -0.1, 0.3, float("nan")])
def test_standard_deviations_of_no_power_function_are_refused(std: float) -> None:
    with pytest.raises(ValueError, match=r"std must lie between 0 and 0\.2886, got"):
        PowerFunctionEMA(std)


def test_a_power_function_goes_on_from_a_checkpoint() -> None:
    denoiser, whole, resumed = Denoiser(), PowerFunctionEMA(0.1), PowerFunctionEMA(0.1)
    for step in range(1, 11):
        with torch.no_grad():
            denoiser.weight.fill_(float(step))
        whole.update(denoiser)
        if step == 5:
            resumed.load({"ema": {"decay": whole.decay, "updates": whole.updates, "weights": whole.weights}})
        elif step > 5:
            resumed.update(denoiser)
    assert torch.equal(resumed.weights["weight"], whole.weights["weight"])
    assert resumed.decay == whole.decay == pytest.approx(0.9 ** (power_exponent(0.1) + 1))
