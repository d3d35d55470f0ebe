"""The networks that are trained, written out so that nothing but torch is needed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def conv_norm(channels_in: int, channels: int, size: int, stride: int = 1) -> nn.Sequential:
    """A convolution without bias and its BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, size, stride, padding=size // 2, bias=False), nn.BatchNorm2d(channels)
    )


class Residual(nn.Module):
    """A block of convolutions, each with BatchNorm, and a shortcut around them.

    Args:
        channels_in: channels of the input.
        channels: channels of the inner convolutions.
        stride: of the block.
        bottleneck: 1x1, 3x3, 1x1 with four times the channels at the end, in place of two 3x3.
    """

    def __init__(self, channels_in: int, channels: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        out = channels * 4 if bottleneck else channels
        if bottleneck:
            parts = [conv_norm(channels_in, channels, 1), conv_norm(channels, channels, 3, stride)]
            parts.append(conv_norm(channels, out, 1))
        else:
            parts = [conv_norm(channels_in, channels, 3, stride), conv_norm(channels, out, 3)]
        self.parts = nn.ModuleList(parts)
        same = stride == 1 and channels_in == out
        self.shortcut: nn.Module = nn.Identity() if same else conv_norm(channels_in, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, channels_in, h, w]`` to ``[n, out, h / stride, w / stride]``."""
        y = x
        for index, part in enumerate(self.parts):
            y = part(y) if index == 0 else part(torch.relu(y))
        return torch.relu(y + self.shortcut(x))


def digits_net() -> nn.Sequential:
    """The network of ``examples/01_digits_resnet.py``, for images ``[n, 1, 8, 8]`` in ten classes."""
    return nn.Sequential(
        conv_norm(1, 16, 3),
        nn.ReLU(),
        Residual(16, 16, 1, bottleneck=False),
        Residual(16, 32, 2, bottleneck=False),
        Residual(32, 64, 2, bottleneck=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def resnet(depths: Sequence[int], *, bottleneck: bool, classes: int) -> nn.Sequential:
    """ResNet for images ``[n, 3, h, w]`` (He et al., arXiv 1512.03385): 2, 2, 2, 2 is ResNet-18, 3, 4, 6, 3 with
    bottlenecks ResNet-50.
    """
    layers: list[nn.Module] = [conv_norm(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
    width = 64
    for stage, depth in enumerate(depths):
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            layers.append(Residual(width, 64 << stage, stride, bottleneck=bottleneck))
            width = (64 << stage) * (4 if bottleneck else 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def transformer(width: int, heads: int, depth: int, *, norm_first: bool, dropout: float) -> nn.TransformerEncoder:
    """Attention and MLP layers with LayerNorm, on ``[n, tokens, width]``."""
    layer = nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=norm_first
    )
    final = nn.LayerNorm(width) if norm_first else None
    return nn.TransformerEncoder(layer, depth, final, enable_nested_tensor=False)


class LanguageModel(nn.Module):
    """Predicts tokens; the output layer shares the embedding's weight.

    Args:
        vocabulary: how many tokens there are.
        tokens: length of a sequence at most.
        width, heads, depth: of the transformer.
        causal: each position sees only those before it (GPT-2: norm first); else all see all (BERT: norm last).
    """

    def __init__(self, vocabulary: int, tokens: int, width: int, heads: int, depth: int, *, causal: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.norm = nn.Identity() if causal else nn.LayerNorm(width)
        self.encoder = transformer(width, heads, depth, norm_first=causal, dropout=0.1)
        nn.init.normal_(self.embedding.weight, std=0.02)
        mask = nn.Transformer.generate_square_subsequent_mask(tokens) if causal else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """int64 ``[n, tokens]`` to logits ``[n, tokens, vocabulary]``."""
        hidden = self.norm(self.embedding(x) + self.position[: x.shape[1]])
        hidden = self.encoder(hidden, mask=self.mask, is_causal=self.mask is not None)
        return nn.functional.linear(hidden, self.embedding.weight)


class VisionTransformer(nn.Module):
    """ViT-B/16 for images ``[n, 3, 224, 224]`` (Dosovitskiy et al., arXiv 2010.11929)."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 768, 16, 16)
        self.token = nn.Parameter(torch.zeros(1, 1, 768))
        self.position = nn.Parameter(torch.randn(1, 197, 768) * 0.02)
        self.encoder = transformer(768, 12, 12, norm_first=True, dropout=0.0)
        self.head = nn.Linear(768, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits ``[n, classes]``."""
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), patches], dim=1)
        logits: Tensor = self.head(self.encoder(tokens + self.position)[:, 0])
        return logits
