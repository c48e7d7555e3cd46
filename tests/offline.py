"""The stock benchmarks on a machine without network: their datasets' Arrow cache, real mp4 files, and the real command.

``build`` lays a Hugging Face home that lmms-eval's unmodified tasks read as if they had downloaded it.
Every document is made here. Its gold answer depends only on its position, so that a model with a fixed answer has a
known score: even documents want ``B`` (or ``yes``), odd ones ``A`` (or ``no``), numeric ones ``4``. Two neighbouring
documents ask about the same video.

``run_lmms_eval`` runs ``python -m lmms_eval`` in a subprocess and reads back what it wrote.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import torch
from datasets import Dataset, DatasetInfo, SplitDict, SplitInfo
from datasets.arrow_writer import ArrowWriter
from datasets.naming import camelcase_to_snakecase
from offline_documents import benchmarks
from offline_further import SUBTITLES, further_benchmarks
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from lmms_eval_vreason.shapes.architecture import random_checkpoint, save_checkpoint

MINIMUM_DOCS = 4  # vsibench's stock aggregate needs its three direction levels, and one numeric question

# Written into the subprocess' path: any connection that leaves the machine is recorded and refused.
_GUARD = """
import os, socket
_connect, _resolve = socket.socket.connect, socket.getaddrinfo
_LOCAL = ("127.0.0.1", "::1", "localhost", None, "", socket.gethostname())
def _refuse(host):
    with open(os.environ["NETWORK_LOG"], "a") as log:
        log.write(f"{host}\\n")
    raise OSError(f"the test machine has no network: {host}")
def _guarded_connect(self, address):
    if isinstance(address, tuple) and address[0] not in _LOCAL:
        _refuse(address[0])
    return _connect(self, address)
def _guarded_resolve(host, *args, **kwargs):
    if host not in _LOCAL:
        _refuse(host)
    return _resolve(host, *args, **kwargs)
socket.socket.connect, socket.getaddrinfo = _guarded_connect, _guarded_resolve
"""


@dataclass(frozen=True)
class OfflineBenchmarks:
    """What ``build`` laid.

    Attributes:
        env: the whole environment for a subprocess (a copy of this one with ``HF_HOME``, ``HF_HUB_OFFLINE=1``, …).
        tasks: names of the stock tasks that run on it, all six benchmarks (of MVBench all twenty subtasks).
        further: names of further stock video tasks that run on it.
        videos: the distinct mp4 files, in the order in which documents use them.
        home: the ``HF_HOME`` folder.
    """

    env: dict[str, str]
    tasks: tuple[str, ...]
    further: tuple[str, ...]
    videos: tuple[Path, ...]
    home: Path

    def network_calls(self) -> list[str]:
        """Hosts that subprocesses under ``env`` tried to reach; each attempt was refused."""
        log = Path(self.env["NETWORK_LOG"])
        return log.read_text().split() if log.exists() else []


@dataclass(frozen=True)
class Run:
    """One run of the command: exit code, its whole log (stdout and stderr), the results JSON, and samples by task."""

    returncode: int
    log: str
    results: dict = field(default_factory=dict)
    samples: dict[str, list[dict]] = field(default_factory=dict)

    def metric(self, task: str, name: str, kind: str = "none") -> float:
        """One figure of the results: ``run.metric("videomme", "videomme_perception_score")``."""
        return self.results["results"][task][f"{name},{kind}"]


def write_video(
    path: Path, *, seed: int = 0, frames: int = 16, fps: int = 4, size: tuple[int, int] = (112, 84)
) -> Path:
    """Writes an H.264 mp4 of a square that moves over a gradient; ``size`` is (width, height) in pixels."""
    width, height = size
    path.parent.mkdir(parents=True, exist_ok=True)
    gradient = np.linspace(40, 120, width, dtype=np.uint8)
    colour = np.random.default_rng(seed).integers(130, 256, 3, dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            image = np.repeat(np.tile(gradient, (height, 1))[:, :, None], 3, axis=2)
            left = int(index * (width - 24) / max(frames - 1, 1))
            image[height // 2 - 12 : height // 2 + 12, left : left + 24] = colour
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def build(root: Path, *, docs: int = MINIMUM_DOCS) -> OfflineBenchmarks:
    """Lays datasets and videos of the six benchmarks under ``root``, with ``docs`` documents a dataset configuration.

    Raises:
        ValueError: fewer documents than vsibench's stock aggregate can work with.
    """
    if docs < MINIMUM_DOCS:
        raise ValueError(f"docs={docs}: vsibench cannot be aggregated on fewer than {MINIMUM_DOCS} documents")
    home = root / "hf_home"
    videos = tuple(write_video(root / "videos" / f"{seed}.mp4", seed=seed) for seed in range((docs + 1) // 2))
    tasks = _lay(home, videos, benchmarks(docs))
    further = _lay(home, videos, further_benchmarks(docs))
    for video in (home / "videomathqa" / "videos").iterdir():
        subtitles = home / "videomathqa" / "subtitles" / f"{video.stem}.srt"
        subtitles.parent.mkdir(exist_ok=True)
        subtitles.write_text(SUBTITLES)
    return OfflineBenchmarks(_environment(root, home), tasks, further, videos, home)


def run_lmms_eval(
    env: Mapping[str, str],
    *,
    model: str,
    model_args: Mapping[str, object],
    tasks: Iterable[str],
    output: Path,
    extra: Sequence[str] = (),
    launcher: Sequence[str] = (),
    script: str = "",
    check: bool = True,
    timeout: float = 300,
) -> Run:
    """Runs the lmms-eval command and reads its results and samples.

    Args:
        env: the environment, as ``OfflineBenchmarks.env``.
        model_args: written as ``name=value,…``.
        output: a folder of this run alone.
        extra: further arguments, as ``("--limit", "1")``.
        launcher: what stands between ``python`` and ``-m lmms_eval``, as ``("-m", "torch.distributed.run", …)``.
        script: a file that runs in place of ``-m lmms_eval``.
        check: fail when there is no results file. The exit code won't tell: lmms-eval returns 0 after an exception.
    """
    command = [sys.executable, *launcher, *([script] if script else ("-m", "lmms_eval")), "--model", model]
    command += ["--model_args", ",".join(f"{name}={value}" for name, value in model_args.items())]
    command += ["--tasks", ",".join(tasks), "--output_path", str(output), "--log_samples", "--batch_size", "1", *extra]
    process = subprocess.run(command, env=dict(env), text=True, capture_output=True, timeout=timeout)
    log = process.stdout + process.stderr
    found = sorted(output.rglob("*_results.json"))
    if not found:
        assert not check, f"lmms-eval wrote no results:\n{log[-6000:]}"
        return Run(process.returncode, log)
    samples = {}
    for path in sorted(found[-1].parent.glob("*_samples_*.jsonl")):
        task = path.stem.split("_samples_", 1)[1]
        samples[task] = [json.loads(line) for line in path.read_text().splitlines()]
    return Run(process.returncode, log, json.loads(found[-1].read_text()), samples)


def scripted_checkpoint(folder: Path, text: str) -> Path:
    """A real checkpoint whose greedy output is always ``text``, whatever the prompt and the video.

    Its layers add nothing, so that each token alone decides the next one. Hence no token may occur twice in ``text``.

    Raises:
        ValueError: a token occurs twice.
    """
    random_checkpoint(folder, tie_word_embeddings=False)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    processor = Qwen2_5_VLProcessor.from_pretrained(folder)
    tokenizer = processor.tokenizer
    chain = tokenizer.encode("\n") + tokenizer.encode(text) + [tokenizer.eos_token_id]
    if len(set(chain)) != len(chain):
        raise ValueError(f"{text!r} has a token twice: {tokenizer.convert_ids_to_tokens(chain)}")
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embeddings = torch.nn.functional.normalize(model.get_input_embeddings().weight, dim=-1)
        model.lm_head.weight.zero_()
        model.lm_head.weight[chain[1:]] = embeddings[chain[:-1]]
    return save_checkpoint(model, processor, folder)


def _lay(home: Path, videos: Sequence[Path], datasets: Iterable[tuple]) -> tuple[str, ...]:
    """Writes datasets and their videos; two neighbouring documents share one. Gives the names of the tasks."""
    tasks: list[str] = []
    for repository, config, split, rows, files, names in datasets:
        _write_dataset(home / "datasets", repository, config, split, rows)
        for index, file in enumerate(files):
            target = home / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(videos[index // 2], target)
        tasks.extend(names)
    return tuple(tasks)


def _environment(root: Path, home: Path) -> dict[str, str]:
    guard = root / "guard"
    guard.mkdir(parents=True, exist_ok=True)
    (guard / "sitecustomize.py").write_text(_GUARD)
    secrets = ("KEY", "TOKEN", "SECRET")
    env = {name: value for name, value in os.environ.items() if not any(word in name.upper() for word in secrets)}
    env.update(
        HF_HOME=str(home),
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
        OMP_NUM_THREADS="1",
        CUDA_VISIBLE_DEVICES="",
        TOKENIZERS_PARALLELISM="false",
        NETWORK_LOG=str(root / "network.log"),
        PYTHONPATH=os.pathsep.join(part for part in (str(guard), os.environ.get("PYTHONPATH")) if part),
        LMMS_EVAL_VREASON_CACHE=str(root / "cache"),
    )
    for name in ("HF_DATASETS_CACHE", "LMMS_EVAL_DATASETS_CACHE", "HF_HUB_CACHE"):
        env.pop(name, None)
    return env


def _write_dataset(cache: Path, repository: str, config: str, split: str, rows: list[dict]) -> None:
    """One configuration in the layout that ``datasets`` looks up when it is offline."""
    namespace, name = repository.split("/")
    snake = camelcase_to_snakecase(name)
    folder = cache / f"{namespace}___{snake}" / config / "0.0.0" / f"{0:040x}"
    folder.mkdir(parents=True)
    features = Dataset.from_list(rows).features
    path = folder / f"{snake}-{split}.arrow"
    with ArrowWriter(features=features, path=str(path)) as writer:
        for row in rows:
            writer.write(row)
        writer.finalize()
    splits = SplitDict(dataset_name=snake)
    splits.add(SplitInfo(name=split, num_examples=len(rows), dataset_name=snake, num_bytes=path.stat().st_size))
    info = DatasetInfo(features=features, splits=splits, builder_name=snake, dataset_name=snake, config_name=config)
    info.write_to_directory(str(folder))
