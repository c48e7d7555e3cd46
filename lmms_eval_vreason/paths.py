"""Folders of this package: the user's cache, and the task files that travel with it."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """The user's cache for made data and journals: ``$LMMS_EVAL_VREASON_CACHE`` or ``~/.cache/lmms-eval-vreason``."""
    return Path(os.environ.get("LMMS_EVAL_VREASON_CACHE") or "~/.cache/lmms-eval-vreason").expanduser()


def tasks_dir() -> Path:
    """The folder for ``--include_path``: inside the installed wheel, or at the top of a source checkout."""
    package = Path(__file__).resolve().parent
    installed, checkout = package / "_tasks", package.parent / "tasks"
    return installed if installed.is_dir() else checkout
