"""lmms-eval's own task files, read and not copied: ``stock.videomme__dataset_path`` is that key of its yaml.

The task files under ``tasks/vreason`` name these attributes, so that dataset, split and cache folder follow lmms-eval.
"""

import os
from copy import deepcopy
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import lmms_eval.tasks
import yaml

_FILES = {
    "videomme": "videomme/videomme.yaml",
    "vsibench": "vsibench/vsibench.yaml",
    "mvbench": "mvbench/_default_template_yaml",
    "tempcompass": "tempcompass/_default_template_yaml",
    "mmvu": "mmvu/mmvu_val.yaml",
    "videommmu": "videommmu/_default_template_yaml",
    "videomathqa_mcq": "videomathqa/videomathqa_mcq_w_subtitle.yaml",
    "videomathqa_mcq_cot": "videomathqa/videomathqa_mcq_cot_w_subtitle.yaml",
    "videomathqa_mbin": "videomathqa/videomathqa_mbin_w_subtitle.yaml",
    "videomathqa_mbin_cot": "videomathqa/videomathqa_mbin_cot_w_subtitle.yaml",
}


def stock_utils(folder: str) -> ModuleType:
    """The ``utils`` module of a stock task folder.

    Two of them need ``HF_HOME`` at import; where it is unset it becomes what the datasets library uses then.
    """
    os.environ.setdefault("HF_HOME", os.path.expanduser("~/.cache/huggingface"))
    return import_module(f"lmms_eval.tasks.{folder}.utils")


def stock_config(benchmark: str) -> dict[str, Any]:
    """A stock task's configuration, functions left out; a fresh copy, since lmms-eval empties what it is given."""
    return deepcopy(_read(Path(lmms_eval.tasks.__file__).parent / _FILES[benchmark]))


class _Loader(yaml.SafeLoader):
    """Functions read as None. lmms-eval's own loader sets a global state that the load which calls us relies on."""


_Loader.add_constructor("!function", lambda loader, node: None)


@cache
def _read(path: Path) -> dict[str, Any]:
    config = yaml.load(path.read_bytes(), Loader=_Loader)
    include = config.pop("include", None)
    return config if include is None else {**_read(path.parent / include), **config}


def __getattr__(name: str) -> Any:
    benchmark, _, key = name.partition("__")
    if benchmark in _FILES and key:
        return stock_config(benchmark)[key]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
