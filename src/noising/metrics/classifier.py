"""A small classifier of the data set's own images, whose penultimate features take the place of Inception's.

Inception's features are made for photographs of 299x299 pixels; they hardly tell good digits from bad, and its weights
must be downloaded. A network trained on the set's own classes has features that matter for them.

Legend: B images, C channels, h and w a layer's sides.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noising.metrics.extractors import FeatureExtractor

STEPS = 600  # optimizer steps of a fit: a fixed number, so that the time does not grow with the data set
BATCH = 128  # images of a step


class Classifier(FeatureExtractor):
    """Convolutions that halve the image until it is at most 4 wide, then two linear layers.

    Raises ValueError for a side below 4.
    """

    name = "classifier"
    dims = 64

    def __init__(self, channels: int, resolution: int, classes: int) -> None:
        super().__init__()
        if resolution < 4:
            raise ValueError(f"resolution must be at least 4, got {resolution}")
        halvings = math.ceil(math.log2(resolution / 4))
        strides = [1] * (2 - halvings) + [2] * halvings  # two convolutions at least
        widths = [channels, 32] + [64] * (len(strides) - 1)
        self.convolutions = nn.Sequential()
        for inputs, outputs, stride in zip(widths[:-1], widths[1:], strides, strict=True):
            convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
            self.convolutions.append(nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU()))
        side = math.ceil(resolution / 2**halvings)
        self.project = nn.Sequential(nn.Flatten(), nn.Linear(64 * side**2, self.dims), nn.GELU())
        self.classify = nn.Linear(self.dims, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features (B, 64) of images (B, C, H, W) uint8."""
        x = self.convolutions(pixels.to(torch.float32) / 127.5 - 1)  # (B, 64, h, w), from [-1, 1]
        features: Tensor = self.project(x)  # (B, 64)
        return features

    def class_logits(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classify(features.to(self.classify.weight.device))
        return logits


def fit_classifier(pixels: Tensor, labels: Tensor | None, classes: int, seed: int = 0) -> Classifier:
    """Fit a classifier to the images; it is returned in evaluation mode and without gradients.

    A fixed number of AdamW steps (https://arxiv.org/abs/1711.05101) on randomly shifted images, with one cycle of the
    learning rate (https://arxiv.org/abs/1708.07120). It runs on the host in one thread with a generator of its own:
    equal arguments give bitwise equal weights on one kind of machine, and torch's generators are left unchanged.

    Args:
        pixels: (N, C, H, W) uint8 of 8 bits, square.
        labels: (N,) int64, 0..classes-1.
        classes: number of classes.
        seed: of the first weights, the order and the shifts.

    Raises:
        ValueError: labels are missing or out of range, there are fewer than 2 classes, or images are not square.
    """
    if labels is None or len(labels) != len(pixels) or len(labels) == 0:
        got = "none" if labels is None else len(labels)
        raise ValueError(f"a classifier needs one label for each image: {len(pixels)} images, labels: {got}")
    if pixels.shape[-1] != pixels.shape[-2]:
        raise ValueError(f"a classifier needs square images, got {pixels.shape[-2]}x{pixels.shape[-1]}")
    if classes < 2:
        raise ValueError(f"a classifier needs at least 2 classes, got {classes}")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= classes:
        raise ValueError(f"labels of {classes} classes must be 0..{classes - 1}, got {lowest}..{highest}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several threads add in another order, with other rounding
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the devices' as well
            classifier = Classifier(pixels.shape[1], pixels.shape[-1], classes)
            _fit(classifier, pixels.cpu(), labels.cpu())
    finally:
        torch.set_num_threads(threads)
    return classifier.eval().requires_grad_(False)


def _fit(classifier: Classifier, pixels: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.05)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.005, total_steps=STEPS)
    rounds = math.ceil(STEPS * BATCH / len(pixels))
    order = torch.cat([torch.randperm(len(pixels)) for _ in range(rounds)])
    for index in order[: STEPS * BATCH].view(STEPS, BATCH):
        logits = classifier.class_logits(classifier(_shifted(pixels[index])))
        loss = F.cross_entropy(logits, labels[index], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        cycle.step()


def _shifted(pixels: Tensor) -> Tensor:
    """Shift each image (B, C, H, W) by up to an eighth of its side, repeating its edge."""
    side = pixels.shape[-1]
    shift = torch.randint(-(side // 8), side // 8 + 1, (2, len(pixels), 1))
    rows, columns = (torch.arange(side) + shift).clamp(0, side - 1)  # (B, H), (B, W)
    image = torch.arange(len(pixels))[:, None, None]
    return pixels[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
