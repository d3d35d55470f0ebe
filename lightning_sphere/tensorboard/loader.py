"""What TensorBoard imports at its start, whether or not a run has our data: nothing heavy, nothing that can fail."""

from __future__ import annotations

import logging
from typing import Any

from tensorboard.plugins import base_plugin

from lightning_sphere.tensorboard.schema import PLUGIN_NAME

SAMPLES = 2000
"""Steps that TensorBoard keeps of each run, unless ``--samples_per_plugin`` says otherwise; its own default is 10 for
the tensors of others (100 with the fast loader)."""

_log = logging.getLogger(__name__)


class SphereLoader(base_plugin.TBLoader):  # type: ignore[misc]
    """Makes the plugin; TensorBoard finds it by the entry point ``tensorboard_plugins``."""

    def fix_flags(self, flags: Any) -> None:
        """Ask for enough samples; what the user asked for stays.

        Args:
            flags: TensorBoard's parsed command line.
        """
        try:
            if flags.samples_per_plugin is None:
                flags.samples_per_plugin = {}
            flags.samples_per_plugin.setdefault(PLUGIN_NAME, SAMPLES)
        except Exception as error:
            _log.debug("lightning_sphere: TensorBoard keeps few samples: %r", error)

    def load(self, context: Any) -> Any:
        """The plugin, or ``None`` with a warning: a failure of ours must not keep TensorBoard from starting.

        Args:
            context: TensorBoard's ``TBContext``.
        """
        try:
            from lightning_sphere.tensorboard.dashboard.plugin import SpherePlugin

            return SpherePlugin(context)
        except Exception as error:
            _log.warning("lightning_sphere: TensorBoard starts without its dashboard: %r", error)
            return None
