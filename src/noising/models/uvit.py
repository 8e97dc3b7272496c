"""U-ViT: a transformer over patches, the noise label and the class, with skip connections across its middle.

Legend: B images, C channels, H and W the image's sides, p a patch's side, P = (H / p) (W / p) patches, D token width,
T = P + 1 tokens, one more with classes.
"""

import torch
from torch import Tensor, nn

from noising.errors import require
from noising.models.blocks import Recomputed
from noising.models.embeddings import ClassEmbedding, Sinusoids, labels_for
from noising.models.tokens import FeedForward, Patches, TokenAttention, as_image, inner_width, require_token_sizes


class UViT(nn.Module):
    """Transformer blocks in which all that the network is told is a token, and the first blocks join the last ones.

    Bao et al., "All are Worth Words: A ViT Backbone for Diffusion Models" (2023). https://arxiv.org/abs/2209.12152

    ``model(x, noise_label, class_label=None)``: x (B, channels, H, W), noise_label (B,) about 0 to 1000,
    class_label (B,) long or None; output is (B, out_channels, H, W), not zero before training. The number ``classes``
    means "no class", and so does None.

    Args:
        resolution: side of the image; a multiple of ``patch``.
        classes: number of image classes; 0 for a model without classes.
        null_class: "no class" has a row of its own, which label dropout trains; without it, its token is zero.
        width: of each token; even, and a multiple of ``heads``.
        depth: blocks on both sides of the middle one, half of them on each; even.
        heads: attention heads.
        patch: side of the square patches.
        mlp_ratio: hidden width of a block's two layers, in widths.
        qkv_bias: the matrix of query, key and value has a bias.
        time_layers: two layers behind the sinusoids of the noise label, which are a token themselves without.
        skips: skip connections across the middle.
        last_convolution: a 3x3 convolution of the image that the patches give.
        checkpointing: features within a block are computed again for the gradient: less memory, more time.

    Raises ValueError if a number is out of range or does not divide another; the message names it.
    """

    def __init__(
        self,
        *,
        channels: int,
        out_channels: int,
        resolution: int,
        classes: int = 0,
        null_class: bool = True,
        width: int = 512,
        depth: int = 12,
        heads: int = 8,
        patch: int = 2,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        time_layers: bool = False,
        skips: bool = True,
        last_convolution: bool = True,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        require_token_sizes(resolution, classes, patch, width, depth, heads)
        require(depth % 2 == 0, f"depth must be even, half on each side of the middle, got {depth}")
        require(width % 2 == 0, f"width must be even, got {width}")
        inner = inner_width(mlp_ratio, width)
        self.classes, self.patch, self.skips = classes, patch, skips
        self.patches = Patches(channels, width, patch)
        self.sinusoids = Sinusoids(width)
        layers = (nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)) if time_layers else ()
        self.time_layers = nn.Sequential(*layers)
        self.class_embedding = ClassEmbedding(classes, width, null_class) if classes else None
        self.extra = 2 if classes else 1
        self.positions = nn.Parameter(torch.zeros(self.extra + (resolution // patch) ** 2, width))

        def block(joins: bool = False) -> JoiningBlock:
            return JoiningBlock(width, TokenAttention(width, heads, qkv_bias), inner, joins, checkpointing)

        self.before = nn.ModuleList(block() for _ in range(depth // 2))
        self.middle = block()
        self.after = nn.ModuleList(block(joins=skips) for _ in range(depth // 2))
        self.last_norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, patch**2 * out_channels)
        self.last_convolution = nn.Conv2d(out_channels, out_channels, 3, padding=1) if last_convolution else None
        self._initialize()

    def _initialize(self) -> None:
        """Normal weights of standard deviation 0.02 in all layers between the first and the last convolution."""
        nn.init.trunc_normal_(self.positions, std=0.02)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        class_label = labels_for(class_label, self.classes, noise_label)  # (B,) or None
        sinusoids = self.sinusoids(noise_label)  # (B, D)
        cosines_first = sinusoids.roll(sinusoids.shape[1] // 2, dims=1)  # as in their weights
        extra = [self.time_layers(cosines_first)[:, None]]  # (B, 1, D)
        if self.class_embedding is not None:
            extra.insert(0, self.class_embedding(class_label)[:, None])  # (B, 1, D)
        tokens = torch.cat([*extra, self.patches(x)], dim=1) + self.positions  # (B, T, D)
        skips = []
        for block in self.before:
            tokens = block(tokens)  # (B, T, D)
            skips.append(tokens)
        tokens = self.middle(tokens)  # (B, T, D)
        for block in self.after:
            tokens = block(tokens, skips.pop()) if self.skips else block(tokens)  # (B, T, D)
        pixels = self.last(self.last_norm(tokens[:, self.extra :]))  # (B, P, p p out_channels)
        image = as_image(pixels, self.patch)  # (B, out_channels, H, W)
        out: Tensor = image if self.last_convolution is None else self.last_convolution(image)
        return out  # (B, out_channels, H, W)


class JoiningBlock(Recomputed):
    """Self-attention, then two layers for each token, each normalized before and added: (B, T, D) to (B, T, D).

    joins: the tokens of a skip connection are joined to the tokens first.
    """

    def __init__(
        self, width: int, attention: TokenAttention, inner: int, joins: bool = False, checkpointed: bool = False
    ) -> None:
        super().__init__(checkpointed)
        self.join = nn.Linear(2 * width, width) if joins else None
        self.attention_norm, self.attention = nn.LayerNorm(width), attention
        self.feed_forward_norm, self.feed_forward = nn.LayerNorm(width), FeedForward(width, inner)

    def compute(self, tokens: Tensor, skipped: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """The block's output (B, T, D); skipped: (B, T, D), for a block that joins."""
        if self.join is not None and skipped is not None:
            tokens = self.join(torch.cat([tokens, skipped], dim=2))  # (B, T, D)
        tokens = tokens + self.attention(self.attention_norm(tokens))  # (B, T, D)
        fed: Tensor = self.feed_forward(self.feed_forward_norm(tokens))  # (B, T, D)
        return tokens + fed
