"""Which weights of a network are scale-invariant, and why: a convolutional network and a transformer.

    python examples/02_discover.py            # repeated blocks told as one
    python examples/02_discover.py --all      # a line for every weight

A second on a CPU, nothing is trained or downloaded. Of the convolutional network, every convolution is invariant, each
filter by itself, for a BatchNorm follows it. Of the transformer only the queries and keys are, which are normalized per
head; all that write into its residual stream are invariant together, because nothing but LayerNorms reads it.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_sphere import discover


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + x)


class SmallResNet(nn.Module):
    """A residual network for images of ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(16))
        self.blocks = nn.Sequential(*(ResidualBlock(16) for _ in range(4)))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


class TransformerBlock(nn.Module):
    """Attention and a feed-forward network, each behind its LayerNorm; queries and keys are normalized per head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q_norm, self.k_norm = nn.RMSNorm(width // heads), nn.RMSNorm(width // heads)
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        split = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, is_causal=True)
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        y: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return y


class SmallTransformer(nn.Module):
    """A language model."""

    def __init__(self, vocabulary: int = 100, width: int = 32, heads: int = 4, length: int = 16) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="a line for every weight")
    arguments = parser.parse_args()
    console = Console()

    images, labels = torch.randn(8, 3, 16, 16), torch.randint(10, (8,))
    resnet = SmallResNet()
    resnet_loss = F.cross_entropy(resnet(images), labels)

    ids = torch.randint(100, (4, 17))
    transformer = SmallTransformer()
    transformer_loss = F.cross_entropy(transformer(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

    for model, loss in ((resnet, resnet_loss), (transformer, transformer_loss)):
        discovery = discover(loss, model)  # before backward, which frees the graph
        console.rule(type(model).__name__, align="left")
        console.print(discovery.to_text(console.width, expand=True) if arguments.all else discovery)


if __name__ == "__main__":
    main()
