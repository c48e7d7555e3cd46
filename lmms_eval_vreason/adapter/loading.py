"""The checkpoint: found, checked and loaded. Weights come from safetensors only, and no code from a checkpoint runs."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
    Qwen2_5OmniThinkerForConditionalGeneration,
)

from lmms_eval_vreason.adapter.kinds import KINDS, Kind, kind_for
from lmms_eval_vreason.adapter.options import ModelOptions, Options
from lmms_eval_vreason.families.family import FAMILIES, family_of
from lmms_eval_vreason.journal.files import file_identity
from lmms_eval_vreason.media.options import VideoOptions
from lmms_eval_vreason.media.rule import FrameRule
from lmms_eval_vreason.run.inputs import PromptProcessor

DEFAULTS_FILE = "vreason.json"
_IDENTIFYING = {".safetensors", ".json", ".jinja", ".txt", ".model"}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose config has been read.

    Attributes:
        source: A folder, or a name on the hub.
        config: Its config, of the part that is run.
        revision: The hub's revision that was asked for.
        identity: What tells this checkpoint from others: the hub's commit, or its files' sizes and times of change.
        video: Video options that it brings along, in place of the defaults (``vreason.json``).
    """

    source: str
    config: Any
    revision: str | None
    identity: list[Any]
    video: dict[str, Any]


def find_checkpoint(options: ModelOptions, kind: Kind = KINDS["qwen2_5_vl_vreason"]) -> Checkpoint:
    """Finds ``pretrained`` and reads its config, before anything heavy is loaded.

    Raises:
        ValueError: It does not exist, cannot be reached, or is of another kind than ``kind``.
    """
    source = options.pretrained
    if source == "shapes":
        from lmms_eval_vreason.shapes import checkpoint_dir

        source = str(checkpoint_dir())
    try:
        config = AutoConfig.from_pretrained(source, revision=options.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"pretrained={options.pretrained!r} is neither a folder with a checkpoint nor a model that can be fetched "
            f"({str(error).splitlines()[0]})"
        ) from error
    if config.model_type not in kind.model_types:
        raise ValueError(
            f"pretrained={options.pretrained!r} is a {config.model_type} checkpoint: {_mend(config, kind)}"
        )
    folder = Path(source)
    if not folder.is_dir():
        identity = [source, getattr(config, "_commit_hash", None) or options.revision]
    elif list(folder.glob("*.safetensors")):
        # Weights, and what else an answer depends on: configurations, tokenizer, chat template.
        files = sorted(path for path in folder.iterdir() if path.suffix in _IDENTIFYING and path.name != DEFAULTS_FILE)
        identity = [file_identity(str(path.resolve())) for path in files]
    else:
        raise ValueError(f"pretrained={options.pretrained!r} holds no .safetensors weights: convert them first")
    if config.model_type == "qwen2_5_omni":
        config = config.thinker_config
    return Checkpoint(source, config, options.revision, identity, video_defaults(folder))


def _mend(config: Any, kind: Kind) -> str:
    other = kind_for(config.model_type)
    if other is not None:
        return f"run it with --model {other.model_id}"
    if config.model_type in FAMILIES:
        return "no model class runs it, but lmms_eval_vreason.generate steers it from Python"
    return f"this class runs {', '.join(kind.model_types)} checkpoints, such as {kind.pretrained}"


def video_defaults(folder: Path) -> dict[str, Any]:
    """The video options that a checkpoint's folder brings along in ``vreason.json``; empty without such a file.

    Raises:
        ValueError: The file holds something else, or a value that is not allowed.
    """
    path = folder / DEFAULTS_FILE
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or set(content) != {"video"} or not isinstance(content["video"], dict):
            raise ValueError('it must be {"video": {"fps": 2, …}}')
        if unknown := sorted(set(content["video"]) - set(VideoOptions.model_fields)):
            raise ValueError(f"unknown {', '.join(unknown)}: allowed are {', '.join(VideoOptions.model_fields)}")
        VideoOptions.checked(content["video"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return dict(content["video"])


def choose_device(options: ModelOptions, world_size: int) -> tuple[torch.device, Accelerator | None]:
    """The device for the inputs, and the accelerator where several processes share the work.

    Raises:
        ValueError: The device does not exist here, or ``device_map`` was given to several processes.
    """
    has_cuda = torch.cuda.is_available()
    name = options.device if options.device != "auto" else "cuda" if has_cuda else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device={name!r} is not a device: use auto, cpu, cuda or cuda:0") from error
    if world_size > 1 and options.device_map:
        raise ValueError(
            f"device_map={options.device_map!r} spreads one model over the GPUs, and {world_size} processes were "
            "started: start one process, or leave device_map out"
        )
    if device.type == "cuda" and not has_cuda:
        raise ValueError(f"device={name!r}: torch sees no CUDA device here. Use device=cpu or device=auto")
    if world_size == 1:
        return device, None
    accelerator = Accelerator(cpu=device.type == "cpu")
    return accelerator.device, accelerator


def choose_dtype(options: ModelOptions, device: torch.device) -> str:
    """``auto`` is the checkpoint's dtype on a GPU and float32 on the CPU.

    Raises:
        ValueError: bfloat16 on a GPU that does not compute in it.
    """
    if options.dtype == "auto":
        return "float32" if device.type == "cpu" else "auto"
    if options.dtype == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ValueError("dtype='bfloat16': this GPU does not compute in it. Use dtype=float16")
    return options.dtype


def load_model(checkpoint: Checkpoint, options: ModelOptions, device: torch.device) -> PreTrainedModel:
    """The model on its device(s), frozen and in evaluation mode.

    Raises:
        ValueError: A model that does not fit on its devices.
        ImportError: An attention that is not installed.
    """
    omni = checkpoint.config.model_type == "qwen2_5_omni_thinker"
    kind: Any = Qwen2_5OmniThinkerForConditionalGeneration if omni else AutoModelForImageTextToText
    model: Any = kind.from_pretrained(
        checkpoint.source,
        config=checkpoint.config,
        revision=checkpoint.revision or "main",
        dtype=choose_dtype(options, device),
        attn_implementation=options.attn_implementation,
        device_map=options.device_map,
        use_safetensors=True,
    )
    if options.device_map is None:
        model = model.to(device)
    check_placement(model)
    frozen: PreTrainedModel = model.eval().requires_grad_(False)
    return frozen


def check_placement(model: torch.nn.Module) -> None:
    """Refuses an offloaded model: its parts would be copied to the GPU at every step, and hours become weeks.

    Raises:
        ValueError: A part lies on the disk, or on the CPU beside others on a GPU.
    """
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    elsewhere = places & {"disk", "meta"} or (places & {"cpu"} if len(places) > 1 else set())
    if elsewhere:
        raise ValueError(
            f"device_map: the model does not fit on its devices, parts of it lie on: {', '.join(sorted(elsewhere))}. "
            "Use more or larger GPUs, or dtype=bfloat16"
        )


def load_processor(checkpoint: Checkpoint, kind: Kind, model: Any, options: Options) -> PromptProcessor:
    """The checkpoint's processor, padding on the left, and how its family has prompts and frames."""
    load: Any = AutoProcessor.from_pretrained
    processor = load(checkpoint.source, revision=checkpoint.revision, trust_remote_code=False)
    processor.tokenizer.padding_side = "left"
    video = processor.video_processor
    merged = getattr(video, "temporal_patch_size", None) or 1
    if kind.resizes:
        # Frames come at their size, and are not resized again. Left open, transformers warns of what resizing would do.
        video.cap_pixels_per_frame = False
        rule = FrameRule(video.patch_size * video.merge_size, merged)
    else:
        rule = FrameRule(None, merged, kind.sampling, video)
    thinks = options.thinking.enable_thinking
    return PromptProcessor(processor, family_of(model), rule, {} if thinks is None else {"enable_thinking": thinks})
