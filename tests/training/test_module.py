"""A training step's draws are functions of its place, and of nothing else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from noising.config.options import check_options
from noising.data.image_data import ImageData
from noising.diffusion.objectives import Objective
from noising.errors import ConfigError
from noising.experiment import Experiment
from noising.training.module import DiffusionModule
from tests.helpers import SMALL, Command, composed, read_table, write_greys


class Listening(Objective):
    """Keeps what it is given."""

    def forward(self, denoiser: Any, x: Tensor, t: Tensor, noise: Tensor, **condition: Any) -> dict[str, Tensor]:
        self.t, self.noise = t, noise
        self.dropped = torch.nn.functional.dropout(torch.ones(64), 0.5)
        return {"loss": t.float()}


def drawn(
    digits: ImageData, seed: int = 0, step: int = 0, micro: int = 0, rank: int = 0, world: int = 1, accumulate: int = 1
) -> Listening:
    """What the objective of one micro-batch of the global batch of 24 is given."""
    module: DiffusionModule = Experiment(composed(f"seed={seed}", "model.dropout=0.1"), digits).module
    module.objective = listening = Listening()
    trainer = SimpleNamespace(
        global_step=step, global_rank=rank, world_size=world, accumulate_grad_batches=accumulate, optimizers=[]
    )
    module.trainer = trainer  # type: ignore[assignment]
    size = 24 // (world * accumulate)
    # batches are counted from the start of the training
    loss = module.training_step(
        {"image": torch.zeros(size, 1, 8, 8), "index": torch.arange(size)}, batch_idx=step * accumulate + micro
    )
    torch.testing.assert_close(loss, listening.t.float().mean())
    return listening


def test_equal_places_draw_equally(digits: ImageData) -> None:
    one, two = drawn(digits, step=5, micro=1, accumulate=2), drawn(digits, step=5, micro=1, accumulate=2)
    assert torch.equal(one.t, two.t)
    assert torch.equal(one.noise, two.noise)
    assert torch.equal(one.dropped, two.dropped)


def test_no_two_places_draw_the_same(digits: ImageData) -> None:
    places: list[dict[str, int]] = [{}, {"seed": 1}, {"step": 1}, {"micro": 1}, {"rank": 1}, {"micro": 1, "rank": 1}]
    found = [drawn(digits, **place, world=2, accumulate=2) for place in places]
    for draw in ("t", "noise", "dropped"):
        values = [getattr(listening, draw) for listening in found]
        assert all(not torch.equal(a, b) for i, a in enumerate(values) for b in values[:i]), draw


def test_draws_of_a_step_do_not_depend_on_how_it_is_shared_out(digits: ImageData) -> None:
    whole = drawn(digits, step=3)
    parts = [drawn(digits, step=3, micro=m, rank=r, world=2, accumulate=3) for m in range(3) for r in range(2)]
    assert torch.equal(torch.cat([part.t for part in parts]), whole.t)
    assert torch.equal(torch.cat([part.noise for part in parts]), whole.noise)


SHARED = [
    *SMALL,
    "trainer.max_steps=40",
    "trainer.val_check_interval=40",
    "trainer.log_every_n_steps=1",
    "callbacks.samples=null",
    "label_dropout=0.2",
    *("times=loss_aware", "timesteps=10", "times.history=2"),
]


def test_any_number_of_devices_and_micro_batches_is_the_same_training(noising: Command, tmp_path: Path) -> None:
    """The losses of 40 steps, with withheld classes and times that learn from the losses of all ranks."""
    losses = []
    strategies = {1: "auto", 2: "ddp_fork"}  # forks import nothing anew
    for devices, accumulate in ((1, 1), (1, 2), (2, 1), (2, 2)):
        shares = (f"trainer.devices={devices}", f"trainer.accumulate_grad_batches={accumulate}")
        run = f"{devices}-{accumulate}"
        done = noising("train", *SHARED, *shares, f"trainer.strategy={strategies[devices]}", f"hydra.run.dir={run}")
        assert done.code == 0, done.err
        rows = [row["train/loss"] for row in read_table(tmp_path / run / "metrics.csv") if row["train/loss"]]
        losses.append([float(loss) for loss in rows])
    assert len(losses[0]) == 40
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-5)


def test_the_global_generators_are_left_alone_by_a_network_that_does_not_draw(digits: ImageData) -> None:
    for dropout, seeded in ((0.0, False), (0.1, True)):
        module = Experiment(composed(f"model.dropout={dropout}"), digits).module
        module.objective = Listening()
        trainer = SimpleNamespace(global_step=0, global_rank=0, world_size=1, accumulate_grad_batches=1, optimizers=[])
        module.trainer = trainer  # type: ignore[assignment]
        torch.manual_seed(17)
        expected = torch.nn.functional.dropout(torch.ones(64), 0.5)
        torch.manual_seed(17)
        module.training_step({"image": torch.zeros(8, 1, 8, 8), "index": torch.arange(8)}, batch_idx=0)
        assert torch.equal(module.objective.dropped, expected) != seeded


def test_times_learn_from_a_step_after_all_its_micro_batches(digits: ImageData) -> None:
    """Else the second half of a batch would be drawn from other probabilities than the first."""
    module = Experiment(composed("times=loss_aware", "timesteps=4", "times.history=1"), digits).module
    module.objective, seen = Listening(), []
    module.times.observe = lambda t, loss: seen.append((t, loss))  # type: ignore[method-assign]
    module.all_gather = lambda tensor: tensor  # type: ignore[method-assign]
    trainer = SimpleNamespace(global_step=0, global_rank=0, world_size=1, accumulate_grad_batches=2, optimizers=[])
    module.trainer = trainer  # type: ignore[assignment]
    half = {"image": torch.zeros(4, 1, 8, 8), "index": torch.arange(4)}
    module.training_step(half, batch_idx=0)
    first = module.objective.t
    assert not seen
    module.training_step(half, batch_idx=1)
    ((t, loss),) = seen
    torch.testing.assert_close(t, torch.cat([first, module.objective.t]), check_dtype=False)
    torch.testing.assert_close(loss, t)


def test_importance_weights_reach_the_loss(digits: ImageData) -> None:
    class Weighted(type(Experiment(composed(), digits).module.times)):  # type: ignore[misc]
        def sample(self, draw: Any, schedule: Any) -> tuple[Tensor, Tensor]:
            t, _ = super().sample(draw, schedule)
            return t, 2 * t

    module = Experiment(composed(), digits).module
    module.times, module.objective = Weighted(), Listening()
    trainer = SimpleNamespace(global_step=0, global_rank=0, world_size=1, accumulate_grad_batches=1, optimizers=[])
    module.trainer = trainer  # type: ignore[assignment]
    loss = module.training_step({"image": torch.zeros(8, 1, 8, 8), "index": torch.arange(8)}, batch_idx=0)
    t = module.objective.t
    torch.testing.assert_close(loss, (2 * t * t).float().mean())


class Told(Objective):
    """Keeps the classes it is given."""

    def forward(self, denoiser: Any, x: Tensor, t: Tensor, noise: Tensor, **condition: Any) -> dict[str, Tensor]:
        self.class_label: Tensor | None = condition["class_label"]
        return {"loss": t.float()}


def told(
    digits: ImageData, dropout: float | None, step: int = 0, rank: int = 0, world: int = 2, size: int = 1000
) -> Tensor | None:
    module: DiffusionModule = Experiment(
        composed(f"label_dropout={'null' if dropout is None else dropout}"), digits
    ).module
    module.objective = listening = Told()
    trainer = SimpleNamespace(
        global_step=step, global_rank=rank, world_size=world, accumulate_grad_batches=1, optimizers=[]
    )
    module.trainer = trainer  # type: ignore[assignment]
    batch = {"image": torch.zeros(size, 1, 8, 8), "index": torch.arange(size), "label": torch.arange(size) % 10}
    module.training_step(batch, batch_idx=step)
    return listening.class_label


def test_classes_are_withheld_from_some(digits: ImageData) -> None:
    whole = torch.arange(1000) % 10
    assert told(digits, None) is None
    assert torch.equal(not_none(told(digits, 0)), whole)
    some = not_none(told(digits, 0.1))
    withheld = some != whole
    assert (some[withheld] == 10).all()  # the network's row for no class
    assert abs(int(withheld.sum()) - 100) < 4 * (1000 * 0.1 * 0.9) ** 0.5
    assert torch.equal(not_none(told(digits, 0.1)), some)
    for elsewhere in (told(digits, 0.1, step=1), told(digits, 0.1, rank=1)):
        assert not torch.equal(not_none(elsewhere) == 10, withheld)
    parts = [not_none(told(digits, 0.1, rank=rank, size=500)) for rank in range(2)]
    assert torch.equal(torch.cat(parts) == 10, not_none(told(digits, 0.1, world=1)) == 10)


def not_none(label: Tensor | None) -> Tensor:
    assert label is not None
    return label


@pytest.mark.parametrize("bad", ["1", "-0.1", "true", "often"])
def test_bad_label_dropout_is_named(bad: str) -> None:
    with pytest.raises(ConfigError, match=r"^label_dropout must be null"):
        check_options("train", composed(f"label_dropout={bad}"))


def test_data_without_classes_train_a_network_without(tmp_path: Path) -> None:
    write_greys(tmp_path / "images")
    images = ("data=image_folder", f"data.root={tmp_path}/images", "data.resolution=8", "data.batch_size=4")
    experiment = Experiment(composed("label_dropout=0.1", *images))
    assert experiment.num_classes == 0
    assert experiment.module.denoiser.model.class_embedding is None


@pytest.mark.gpu
@pytest.mark.parametrize("options", [(), ("augmentation=edm", "model._target_=noising.models.song_unet.SongUNet")])
def test_a_training_step_does_not_wait_for_the_device(options: tuple[str, ...], digits: ImageData) -> None:
    """Neither the draws, nor both passes, the clipping and the optimizer: torch raises where the host would wait."""
    experiment = Experiment(composed(*options), digits)
    module = experiment.module.cuda()
    configured = module.configure_optimizers()
    optimizer = configured["optimizer"]
    plugin = SimpleNamespace(scaler=None)
    trainer = SimpleNamespace(
        global_step=0, global_rank=0, world_size=1, accumulate_grad_batches=1, optimizers=[], precision_plugin=plugin
    )
    module.trainer = trainer  # type: ignore[assignment]
    pixels = digits.train.pixels[:64].cuda()
    batch = {"image": digits.scale(pixels), "index": torch.arange(64)}

    def step() -> None:
        loss = module.training_step(batch, trainer.global_step)
        loss.backward()
        module.configure_gradient_clipping(optimizer, 1.0, "norm")
        optimizer.step()
        module.optimizer_zero_grad(0, 0, optimizer)
        trainer.global_step += 1

    step()
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
