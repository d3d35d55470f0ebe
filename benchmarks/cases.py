"""What is trained: a network, its data, and how long one turn of it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.models import LanguageModel, VisionTransformer, digits_net, resnet

SEED = 0

EARLY_STEPS = 100
"""Steps before the timed ones, on small batches: SphereMonitor measures ``drift`` at each of the first hundred recorded
steps and at each tenth later, and what users pay for is the later state."""

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """One training to be measured."""

    title: str
    network: Callable[[], nn.Module]
    batch_size: int
    shape: tuple[int, ...]
    """Of one input, without the batch."""
    classes: int
    turn: int
    """Optimizer steps between two writings (``log_every_n_steps``), which take turns with those of other variants."""
    rounds: int
    text: bool = False
    """Inputs are tokens, and each token has a target."""
    precision: str = "32-true"
    """The Trainer's."""

    def seeded_network(self) -> nn.Module:
        """The network, with the same weights in each process."""
        torch.manual_seed(SEED)
        return self.network()

    def batch(self, size: int, device: torch.device, number: int = 0) -> Batch:
        """Random inputs ``[size, *shape]`` and targets ``[size]``, for text ``[size, *shape]``."""
        generator = torch.Generator().manual_seed(SEED + number)
        if self.text:
            inputs = torch.randint(self.classes, (size, *self.shape), generator=generator)
        else:
            inputs = torch.randn(size, *self.shape, generator=generator)
        targets = torch.randint(self.classes, (size, *self.shape) if self.text else (size,), generator=generator)
        return inputs.to(device), targets.to(device)


CASES: dict[str, Case] = {
    "digits": Case("digits net, 8x8, batch 64", digits_net, 64, (1, 8, 8), 10, turn=50, rounds=30),
    "resnet18": Case(
        "ResNet-18, 64x64, batch 64",
        partial(resnet, (2, 2, 2, 2), bottleneck=False, classes=200),
        64,
        (3, 64, 64),
        200,
        turn=25,
        rounds=5,
    ),
    "encoder": Case(
        "BERT-like encoder, 8 x 64 tokens",
        partial(LanguageModel, 8192, 128, 512, 8, 5, causal=False),
        8,
        (64,),
        8192,
        turn=25,
        rounds=5,
        text=True,
    ),
    "resnet50": Case(
        "ResNet-50, 224x224, batch 128, AMP",
        partial(resnet, (3, 4, 6, 3), bottleneck=True, classes=1000),
        128,
        (3, 224, 224),
        1000,
        turn=50,
        rounds=6,
        precision="16-mixed",
    ),
    "vit": Case(
        "ViT-B/16, batch 64, AMP",
        VisionTransformer,
        64,
        (3, 224, 224),
        1000,
        turn=50,
        rounds=6,
        precision="bf16-mixed",
    ),
    "gpt2": Case(
        "GPT-2 124M, 8 x 1024 tokens, AMP",
        partial(LanguageModel, 50257, 1024, 768, 12, 12, causal=True),
        8,
        (1024,),
        50257,
        turn=50,
        rounds=6,
        text=True,
        precision="bf16-mixed",
    ),
}

DEFAULT_CASES = ("digits", "resnet18", "encoder")
"""Those that a CPU can train; the others want ``--models``."""

OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "adamw": lambda module: torch.optim.AdamW(module.parameters(), 1e-3, weight_decay=0.05),
    "sgd": lambda module: torch.optim.SGD(module.parameters(), 0.01, momentum=0.9, weight_decay=5e-4),
}
