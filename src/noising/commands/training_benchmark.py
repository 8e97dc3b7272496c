"""A training step of this project's Trainer beside a bare loop and the loops of others, by turns in one process."""

import copy
import logging
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hydra import compose
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from noising.commands.benchmark import Benchmark, Ratio, accelerator, device_name, now
from noising.data.image_data import ImageData, Images, Splits
from noising.data.order import StepOrder
from noising.diffusion.times import BatchSlot
from noising.errors import ConfigError
from noising.experiment import Experiment
from noising.randomness import Streams, generator
from noising.runs.folder import Run
from noising.runs.results import Results
from noising.trained import TrainedRun
from noising.training.module import DiffusionModule

log = logging.getLogger(__name__)

IMAGES = 1024
TIMESTEPS = 1000
LEARNING_RATE, CLIP, DECAY = 1e-3, 1.0, 0.9999
NEAR = 0.03
"""The greatest relative difference of two networks' numbers of parameters."""
PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16}


class NoiseImages(ImageData):
    """Images of uniform noise: what they show costs nothing."""

    name = "noise"

    def __init__(self, batch_size: int, channels: int, resolution: int) -> None:
        super().__init__(batch_size)
        self._shape = channels, resolution, resolution

    def load(self) -> Splits:
        count = max(IMAGES, self.batch_size)
        pixels = torch.from_numpy(generator(0, "noise images").integers(0, 256, (count, *self._shape), dtype=np.uint8))
        return Splits(Images(pixels), Images(pixels[:16]), Images(pixels[:16]))


class Loop(ABC):
    """A training loop of somebody's, which goes on by any number of steps."""

    network: nn.Module

    @abstractmethod
    def take(self, steps: int, device: torch.device) -> tuple[float, list[Tensor]]:
        """Take steps, and return the seconds that they took, and their losses."""

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.network.parameters())


class StepLoop(Loop, ABC):
    """A loop that is told each step."""

    @abstractmethod
    def step(self) -> Tensor:
        """Take a step, and return its loss on the device."""

    def take(self, steps: int, device: torch.device) -> tuple[float, list[Tensor]]:
        began = now(device)
        losses = [self.step() for _ in range(steps)]
        return now(device) - began, losses


class BareLoop(StepLoop):
    """The steps of a module as this project's Trainer takes them, by hand: the same draws, the same losses."""

    def __init__(
        self, module: DiffusionModule, data: ImageData, device: torch.device, dtype: torch.dtype | None
    ) -> None:
        self.module, self.network = module.to(device), module.denoiser.model
        self._parameters = [p for p in module.denoiser.parameters() if p.requires_grad]
        self._optimizer = module.optimizer(self._parameters)
        self._average = [p.detach().clone() for p in self._parameters]
        self._order = iter(StepOrder(len(data.train.pixels), data.batch_size, module.seed))
        self._data, self._device, self._dtype, self._number = data, device, dtype, 0

    def loss(self) -> Tensor:
        """The loss of the next batch, with the Trainer's draws."""
        module, step, size = self.module, self._number, self._data.batch_size
        x, _ = self._data.batch("train", next(self._order).indices, self._device)
        slot = BatchSlot(generator(module.seed, "times", step), 0, size, size)
        t, weight = module.times.sample(slot, module.denoiser.schedule)
        noise = Streams(module.seed, "noise", slot.positions, self._device, step).normal(x.shape[1:])
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not None):
            loss: Tensor = (weight.to(x) * module.objective(module.denoiser, x, t, noise)["loss"]).mean()
        self._number += 1
        return loss

    def average(self) -> None:
        """Move the average of the weights."""
        momentum = min(DECAY, self._number / (9 + self._number))
        with torch.no_grad():
            torch._foreach_lerp_(self._average, list(self._parameters), 1 - momentum)

    def step(self) -> Tensor:
        loss = self.loss()
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters, CLIP)
        self._optimizer.step()
        self.average()
        return loss.detach()


class DiffusersLoop(StepLoop):
    """UNet2DModel, DDPMScheduler and EMAModel of diffusers, in the loop of its training example."""

    def __init__(self, ours: dict[str, Any], data: ImageData, device: torch.device, dtype: torch.dtype | None) -> None:
        """ours: arguments of this project's U-Net, of which theirs is made like."""
        from diffusers import DDPMScheduler, UNet2DModel
        from diffusers.training_utils import EMAModel

        widths = [ours["width"] * multiplier for multiplier in ours["multipliers"]]
        sides = [data.resolution >> level for level in range(len(widths))]
        attends = [side in ours["attention"] for side in sides]
        network: Any = UNet2DModel(  # type: ignore[no-untyped-call]
            sample_size=data.resolution,
            in_channels=data.channels,
            out_channels=data.channels,
            block_out_channels=widths,
            layers_per_block=ours["blocks"],
            down_block_types=["AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
            up_block_types=["AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
            attention_head_dim=widths[-1] // ours["heads"],
            norm_num_groups=ours["groups"],
            resnet_time_scale_shift="scale_shift",
        )
        self.network = network.to(device)
        self._scheduler: Any = DDPMScheduler(TIMESTEPS)  # type: ignore[no-untyped-call]
        self._optimizer = torch.optim.AdamW(self.network.parameters(), LEARNING_RATE)
        self._average = EMAModel(self.network.parameters(), decay=DECAY)
        self._batches, self._device, self._dtype = _batches(data, device), device, dtype

    def step(self) -> Tensor:
        x = next(self._batches)
        noise = torch.randn_like(x)
        t = torch.randint(0, TIMESTEPS, (len(x),), device=self._device)
        noisy = self._scheduler.add_noise(x, noise, t)
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not None):
            loss: Any = F.mse_loss(self.network(noisy, t).sample, noise)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._average.step(self.network.parameters())
        return loss.detach()  # type: ignore[no-any-return]


class DenoisingDiffusionLoop(StepLoop):
    """Unet and GaussianDiffusion of denoising-diffusion-pytorch, with its average."""

    def __init__(
        self, ours: dict[str, Any], data: ImageData, device: torch.device, dtype: torch.dtype | None, parameters: int
    ) -> None:
        """parameters: how many the network should have, as nearly as its width allows."""
        from denoising_diffusion_pytorch import GaussianDiffusion, Unet
        from ema_pytorch import EMA

        def network(width: int, head: int) -> nn.Module:
            multipliers = tuple(ours["multipliers"])
            made: nn.Module = Unet(width, dim_mults=multipliers, channels=data.channels, attn_dim_head=head)
            return made

        def apart(sizes: tuple[int, int]) -> int:
            with torch.device("meta"):
                return abs(sum(p.numel() for p in network(*sizes).parameters()) - parameters)

        width = min(range(8, 4 * ours["width"], 4), key=lambda width: apart((width, 32)))
        self.network = network(width, min(range(16, 64, 4), key=lambda head: apart((width, head))))
        diffusion = GaussianDiffusion(self.network, image_size=data.resolution, objective="pred_noise")
        self._diffusion = diffusion.to(device)
        self._optimizer = torch.optim.AdamW(diffusion.parameters(), LEARNING_RATE)
        self._average = EMA(diffusion, beta=DECAY, update_every=1)
        self._batches, self._device, self._dtype = _batches(data, device), device, dtype

    def step(self) -> Tensor:
        x = (next(self._batches) + 1) / 2  # scaled by itself
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not None):
            loss: Any = self._diffusion(x)
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._diffusion.parameters(), CLIP)
        self._optimizer.step()
        self._average.update()
        return loss.detach()  # type: ignore[no-any-return]


def _batches(data: ImageData, device: torch.device) -> Iterator[Tensor]:
    """Shuffled batches, as a loader over a set in memory gives them."""
    while True:
        for index in torch.split(torch.randperm(len(data.train.pixels)), data.batch_size):
            if len(index) == data.batch_size:
                yield data.batch("train", index, device)[0]


class Turns(Callback):
    """Lets the loops of others take as many steps after every so many of the Trainer, and times both."""

    def __init__(self, loops: Sequence[Loop], steps: int, device: torch.device) -> None:
        self.loops, self.steps, self.device = loops, steps, device
        self.seconds: list[list[float]] = []
        """Seconds of each turn: of the Trainer's steps, then of each loop's."""
        self.losses: list[Tensor] = []
        """The Trainer's, of the first turn."""
        self.others: list[list[Tensor]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = now(self.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.seconds:
            self.losses.append(outputs["loss"].detach())
        if (batch_idx + 1) % self.steps:
            return
        turn = [now(self.device) - self._began]
        for loop in self.loops:
            seconds, losses = loop.take(self.steps, self.device)
            turn.append(seconds)
            if not self.seconds:
                self.others.append(losses)
        self.seconds.append(turn)
        self._began = now(self.device)


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that operations make and that still live, and their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._live: dict[int, int] = {}
        self._bytes = 0
        self.peak = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Sequence[Any] = (), named: dict[str, Any] | None = None
    ) -> Any:
        made = operation(*arguments, **(named or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and (key := tensor.untyped_storage()._cdata) not in self._live:
                size = tensor.untyped_storage().nbytes()
                self._live[key] = size
                self._bytes += size
                weakref.finalize(tensor.untyped_storage(), self._free, key)
        self.peak = max(self.peak, self._bytes)
        return made

    def _free(self, key: int) -> None:
        self._bytes -= self._live.pop(key, 0)


def peak_bytes(step: Callable[[], object], device: torch.device) -> int:
    """The most memory that tensors take during a step, beyond what they took before it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return int(torch.cuda.max_memory_allocated(device) - before)
    with LiveTensors() as live:
        step()
    return int(live.peak)


def flops(step: Callable[[], object]) -> int:
    """Floating-point operations of a step, of matrix products and convolutions, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int = 1024) -> float:
    """Floating-point operations a second in a product of two square matrices: the speed of the machine in this run."""
    one = torch.randn(side, side, device=device, dtype=dtype)
    seconds = []
    for _ in range(9):
        began = now(device)
        one @ one
        seconds.append(now(device) - began)
    return 2 * side**3 / float(np.median(seconds))


def trainer_of(
    config: list[str], data: ImageData, folder: Path, turns: Turns, network: nn.Module | None = None
) -> tuple[Trainer, DiffusionModule]:
    """This project's Trainer, as `train` makes it, and its module; network: in place of the config's."""
    experiment = Experiment(compose("train", config), data)
    if network is not None:
        experiment.denoiser.model = network
    module, results = experiment.module, Results(Run(folder))
    return experiment.trainer(results, [*experiment.callbacks(results), turns]), module


@dataclass
class TrainingBenchmark(Benchmark):
    """Images a second in training: this project's Trainer with everything on, and others at equal parameters.

    All take the same number of steps by turns; the median over the turns counts, and the median and range of the ratios
    within a turn. The first turn warms up, and shows that the bare loop has the Trainer's losses.
    """

    columns = ("training, images/s", "the other", "noising", "times as fast")
    needs_checkpoint = False

    resolutions: list[int] = field(default_factory=lambda: [8, 32])
    """Sides of the images. 8 is the default network and one channel, others are a U-Net of 1.6 million parameters and
    three channels, with attention at 8."""
    precisions: list[str] = field(default_factory=lambda: [*PRECISIONS])
    steps: int = 4
    """Optimizer steps of a turn."""
    repeats: int = 7
    """Turns that are measured."""

    def __post_init__(self) -> None:
        if min(self.steps, self.repeats, *self.resolutions) < 1:
            raise ValueError("steps, repeats and resolutions must be at least 1")
        if unknown := set(self.precisions) - set(PRECISIONS):
            raise ValueError(f"precisions must be among {', '.join(PRECISIONS)}, got {', '.join(sorted(unknown))}")

    def run(self, trained: TrainedRun | None, device: torch.device, batch_size: int) -> list[Ratio]:
        cases = [(resolution, precision) for resolution in self.resolutions for precision in self.precisions]
        with torch.enable_grad():
            return [ratio for case in cases for ratio in self._case(*case, device, batch_size)]

    def _case(self, resolution: int, precision: str, device: torch.device, batch_size: int) -> list[Ratio]:
        network = _network(resolution)
        data = NoiseImages(batch_size, 1 if resolution == 8 else 3, resolution)
        data.setup()
        dtype = PRECISIONS[precision]
        with TemporaryDirectory() as folder:
            config = [
                *(f"model.{name}={value}" for name, value in network.items()),
                *options(batch_size, (1 + self.repeats) * self.steps, device),
                f"trainer.precision={precision}",
            ]
            turns = Turns([], self.steps, device)
            trainer, module = trainer_of(config, data, Path(folder), turns)
            bare = BareLoop(copy.deepcopy(module), data, device, dtype)
            others: dict[str, StepLoop] = {
                "a bare loop": bare,
                **_others(network, data, device, dtype, bare.parameters),
            }
            turns.loops = list(others.values())
            trainer.fit(module, data)
        require_equal(turns)
        seconds = np.array(turns.seconds[1:])
        rates = data.batch_size * self.steps / np.median(seconds, axis=0)
        facts = {
            "shape": [batch_size, data.channels, resolution, resolution],
            "precision": precision,
            "steps": self.steps,
            "turns": self.repeats,
            "device": device_name(device),
            "threads": torch.get_num_threads(),
            "matmul_gflops": matmul_rate(device, dtype or torch.float32) / 1e9,
            "parameters": bare.parameters,
            "flops_an_image": flops(bare.step) / batch_size,
            "peak_bytes": peak_bytes(bare.step, device),
            "ours_images_per_second": float(rates[0]),
        }
        found = []
        for number, (name, loop) in enumerate(others.items(), 1):
            ratios = seconds[:, number] / seconds[:, 0]
            card = {
                **facts,
                "theirs_images_per_second": float(rates[number]),
                "theirs_parameters": loop.parameters,
                "theirs_flops_an_image": flops(loop.step) / batch_size,
                "theirs_peak_bytes": peak_bytes(loop.step, device),
                "least": float(ratios.min()),
                "greatest": float(ratios.max()),
            }
            key = f"train_{resolution}_{precision.partition('-')[0]}_{name.replace(' ', '_').replace('-', '_')}"
            what = f"{resolution}x{resolution}, {precision}, {name}"
            found.append(Ratio(key, what, f"{rates[number]:,.1f}", f"{rates[0]:,.1f}", float(np.median(ratios)), card))
        return found


def _network(resolution: int) -> dict[str, Any]:
    if resolution == 8:
        return {"width": 16, "multipliers": [1, 2], "blocks": 1, "attention": [4], "heads": 4, "groups": 8}
    return {"width": 32, "multipliers": [1, 2, 2, 2], "blocks": 1, "attention": [8], "heads": 4, "groups": 8}


def _others(
    network: dict[str, Any], data: ImageData, device: torch.device, dtype: torch.dtype | None, parameters: int
) -> dict[str, StepLoop]:
    """The loops of others that are installed, each of a network of as many parameters."""
    found: dict[str, StepLoop] = {}
    for name, make in {
        "diffusers": lambda: DiffusersLoop(network, data, device, dtype),
        "denoising-diffusion-pytorch": lambda: DenoisingDiffusionLoop(network, data, device, dtype, parameters),
    }.items():
        try:
            loop: StepLoop = make()  # type: ignore[no-untyped-call]
        except ImportError:
            log.warning("%s is left out: install it with pip install 'noising[benchmark]'", name)
            continue
        if abs(loop.parameters / parameters - 1) > NEAR:
            raise ConfigError(f"{name} has {loop.parameters:,} parameters, but noising has {parameters:,}")
        found[name] = loop
    return found


def require_equal(turns: Turns) -> None:
    """Equality before speed: the bare loop, from the same weights, has the Trainer's losses."""
    ours, bare = (torch.stack(losses).double().cpu() for losses in (turns.losses, turns.others[0]))
    torch.testing.assert_close(bare, ours, rtol=1e-3, atol=0)


def options(batch_size: int, steps: int, device: torch.device) -> list[str]:
    """Options of `train` for a training of so many steps and nothing else."""
    return [
        *("~metrics", "callbacks.samples=null", "callbacks.quality=null", f"data.batch_size={batch_size}"),
        *(
            f"trainer.max_steps={steps}",
            "trainer.val_check_interval=1000000",
            f"trainer.accelerator={accelerator(device)}",
        ),
        *("lr_schedule=constant", "lr_schedule.warmup=0", f"optimizer.lr={LEARNING_RATE}", f"ema.decay={DECAY}"),
    ]
