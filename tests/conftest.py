"""Settings for all tests."""

from __future__ import annotations

import torch

# The networks are tiny: one thread is faster than two, and results do not depend on how busy the machine is.
torch.set_num_threads(1)
