"""Who may import whom, and what the light parts may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_sphere

PACKAGE = Path(lightning_sphere.__file__).parent

MAY_IMPORT: dict[str, set[str]] = {
    "groups": set(),
    "quantities": set(),
    "guard": set(),
    "given": {"groups"},
    "strides": set(),
    "histograms": {"groups", "statistics", "strides"},
    "about": {"_version", "discovery", "tensorboard"},
    "options": {"checkpoints", "directions", "given", "histograms", "quantities"},
    "optim": {"directions", "given", "groups"},
    "checkpoints": set(),
    "drift": {"checkpoints", "measurement"},
    "outputs": set(),
    "signals": set(),
    "geometry": set(),
    "settling": set(),
    "equilibrium": set(),
    "directions": {"equilibrium"},
    "statistics": {"groups"},
    "discovery": {"groups"},
    "measurement": {"groups", "geometry", "directions", "guard"},
    "diagnosis": set(),
    "tensorboard": {"_version", "diagnosis", "guard", "quantities"},
    "recording": {"histograms", "quantities", "statistics", "strides", "tensorboard"},
    "sinks": {"recording", "tensorboard"},
    "epsilon": {"groups"},
    "verdict": set(),
    "verification": {"epsilon", "geometry", "groups", "statistics", "verdict"},
    "summary": {"groups", "settling", "sinks", "verdict"},
    "claims": {"discovery", "given", "groups"},
    "calls": {"discovery", "outputs"},
    "inference": {"groups"},
    "background": set(),
    "flushing": {"background", "evaluation", "guard", "measurement", "recording", "sinks", "tensorboard"},
    "evaluation": {
        "directions",
        "epsilon",
        "geometry",
        "groups",
        "histograms",
        "inference",
        "layers",
        "measurement",
        "quantities",
        "recording",
        "running",
        "settling",
        "statistics",
        "strides",
        "tensorboard",
        "verdict",
        "verification",
    },
    "balance": {"directions", "equilibrium", "settling", "statistics"},
    "running": {"balance", "directions", "equilibrium", "geometry", "groups", "measurement", "settling", "statistics"},
    "tracker": {
        "about",
        "calls",
        "checkpoints",
        "claims",
        "directions",
        "discovery",
        "drift",
        "evaluation",
        "flushing",
        "given",
        "guard",
        "layers",
        "measurement",
        "options",
        "outputs",
        "quantities",
        "recording",
        "running",
        "settling",
        "signals",
        "sinks",
        "summary",
        "tensorboard",
        "verdict",
    },
    "functional": {"geometry", "measurement"},
    "metrics": {"functional", "measurement"},
    "epoch": {"metrics", "recording"},
    "layers": {"claims", "discovery", "groups", "guard", "inference", "measurement", "options"},
    "callback": {
        "about",
        "checkpoints",
        "claims",
        "epoch",
        "given",
        "guard",
        "layers",
        "options",
        "recording",
        "settling",
        "sinks",
        "tensorboard",
        "tracker",
        "verdict",
    },
}


def imported(file: Path) -> set[str]:
    """All modules that a file imports at run time, type checking left out."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(file for file in PACKAGE.rglob("*.py") if part_of(file) not in ("__init__", "_version"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_one_way(file: Path) -> None:
    part = part_of(file)
    inside = {name.split(".")[1] for name in imported(file) if name.startswith("lightning_sphere.")}
    assert inside - {part} <= MAY_IMPORT[part]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_only_the_callback_knows_lightning(file: Path) -> None:
    known = {name.split(".")[0] for name in imported(file)}
    assert known.isdisjoint({"pytorch_lightning", "lightning"}) or part_of(file) == "callback"


def loaded_by(statement: str) -> set[str]:
    program = f"import sys\n{statement}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    return set(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    )


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import lightning_sphere", {"torch", "lightning", "pytorch_lightning", "tensorboard", "numpy", "rich"}),
        ("from lightning_sphere import read_run", {"torch", "lightning", "pytorch_lightning", "rich"}),
        ("import lightning_sphere.tensorboard.schema", {"torch", "numpy", "tensorboard"}),
        ("from lightning_sphere import SphereTracker, discover", {"lightning", "pytorch_lightning"}),
    ],
)
def test_what_is_light_stays_light(statement: str, absent: set[str]) -> None:
    assert loaded_by(statement).isdisjoint(absent)


def test_every_public_name_is_there() -> None:
    for name in lightning_sphere.__all__:
        assert getattr(lightning_sphere, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = lightning_sphere.nothing
    assert set(lightning_sphere.__all__) <= set(dir(lightning_sphere))


BOTH = """
import sys
missing = {missing!r}
if missing:
    sys.modules[missing] = None
    import importlib.util, importlib.machinery
    original = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: None if name == missing else original(name, *rest)
from lightning_sphere import SphereMonitor
{check}
"""


@pytest.mark.parametrize(
    ("missing", "check"),
    [
        ("", "import pytorch_lightning as a, lightning.pytorch as b\n"
             "assert isinstance(SphereMonitor(), a.Callback) and isinstance(SphereMonitor(), b.Callback)"),
        ("lightning", "import pytorch_lightning as a\nassert isinstance(SphereMonitor(), a.Callback)"),
        ("pytorch_lightning", "import lightning.pytorch as b\nassert isinstance(SphereMonitor(), b.Callback)"),
    ],
)  # fmt: skip
def test_the_callback_is_one_of_every_installed_lightning(missing: str, check: str) -> None:
    program = BOTH.format(missing=missing, check=check)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
