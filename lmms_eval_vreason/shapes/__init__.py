"""The embedded default: a synthetic video world, and a tiny Qwen2.5-VL trained on it that ships with the package."""

from pathlib import Path


def checkpoint_dir() -> Path:
    """The folder of the trained checkpoint, which ``pretrained=shapes`` means.

    Raises:
        FileNotFoundError: if the installed package lacks its weights.
    """
    folder = Path(__file__).resolve().parent / "checkpoint"
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{folder} has no model.safetensors: reinstall the package, or train one with "
            "`python -m lmms_eval_vreason.shapes.training.train --output runs/shapes`"
        )
    return folder
