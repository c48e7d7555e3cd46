"""Trains the shapes checkpoint from scratch.

    python -m lmms_eval_vreason.shapes.training.train --output runs/shapes

First a drill on text alone (an option's word → its letter), then questions on clips. Each clip is narrated as well,
except in the last part. Every step draws its data from (seed, step), and a stopped run resumes from its last state.
"""

import argparse
import csv
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm
from transformers import DynamicCache, Qwen2_5_VLForConditionalGeneration

from lmms_eval_vreason.engines.hf.upstream import CACHE
from lmms_eval_vreason.families.positions import trained_positions
from lmms_eval_vreason.shapes.architecture import (
    Sizes,
    build_config,
    build_generation_config,
    build_processor,
    save_checkpoint,
)
from lmms_eval_vreason.shapes.evaluate import Reasoner
from lmms_eval_vreason.shapes.items import Item, make_items
from lmms_eval_vreason.shapes.render import render, sampled
from lmms_eval_vreason.shapes.training.batches import NAME_SETS, Batch, Layout, Segments, drill_batch, video_batch
from lmms_eval_vreason.shapes.world import make_scene

SIZES = Sizes(
    layers=4,
    hidden_size=128,
    heads=4,
    kv_heads=2,
    intermediate_size=384,
    vision_layers=2,
    vision_hidden_size=64,
    vision_heads=2,
    rope_theta=1e4,
)


def _losses(hidden: torch.Tensor, head: torch.nn.Module, segments: Segments) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy of the response tokens, and their number; ``hidden`` is ``(rows, tokens, size)``."""
    labels = segments.labels[:, 1:]
    wanted = labels != -100
    logits = head(hidden[:, :-1][wanted])
    return functional.cross_entropy(logits, labels[wanted], reduction="sum"), wanted.sum()


class Learner:
    """The model with what a training step needs: the chat's layout and the rotary positions of its prefix."""

    def __init__(self, model: Any, layout: Layout) -> None:
        self.model, self.layout = model, layout
        positions = trained_positions(model.config, layout.prefix[None], video_grid_thw=layout.grid_thw)
        self.positions = positions[1:]

    def drill_loss(self, segments: Segments) -> torch.Tensor:
        """Mean cross-entropy of the responses, without any video before them."""
        hidden = self.model.model.language_model(input_ids=segments.ids, use_cache=False).last_hidden_state
        total, count = _losses(hidden, self.model.lm_head, segments)
        return total / count

    def _naming_loss(self, video: torch.Tensor, names: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of naming what video tokens show by the words' embeddings; ``video`` is ``(tokens, size)``.

        It ties seeing to the words from the first step on. Without it a tiny model learns to look after a plateau only.
        """
        logits = self.model.lm_head(self.model.model.language_model.norm(video))
        tokenizer = self.layout.processor.tokenizer
        losses = []
        for column, words in enumerate(NAME_SETS):
            ids = torch.tensor(tokenizer([f" {word}" for word in words])["input_ids"])[:, 0]
            wanted = (names[:, column, None] == ids).int().argmax(-1)
            losses.append(functional.cross_entropy(logits[:, ids], wanted))
        return torch.stack(losses).mean()

    def video_loss(self, batch: Batch, *, naming: float = 0.0) -> torch.Tensor:
        """Mean cross-entropy of all responses, and ``naming`` times the loss of naming what the video tokens show.

        Each clip's prefix runs once, and its questions attend to its cache.
        """
        core = self.model.model
        clips = len(batch.grid_thw)
        embeds = core.language_model.embed_tokens(self.layout.prefix).repeat(clips, 1, 1)
        video = core.visual(batch.pixel_values, grid_thw=batch.grid_thw).pooler_output
        at_video = (self.layout.prefix == self.model.config.video_token_id).repeat(clips, 1)
        embeds = embeds.masked_scatter(at_video[..., None], video)
        prefix = core.language_model(
            inputs_embeds=embeds, position_ids=self.positions.expand(3, clips, -1), use_cache=True
        )[CACHE]
        totals, counts = zip(*(self._group_loss(prefix, segments) for segments in batch.groups), strict=True)
        loss = torch.stack(totals).sum() / torch.stack(counts).sum()
        return loss + naming * self._naming_loss(video, batch.names) if naming else loss

    def _group_loss(self, prefix: Any, segments: Segments) -> tuple[torch.Tensor, torch.Tensor]:
        cache = DynamicCache()
        for index, layer in enumerate(prefix.layers):
            cache.update(layer.keys[segments.clip], layer.values[segments.clip], index)
        tokens = segments.ids.shape[1]
        positions = self.positions.max() + 1 + segments.gap[:, None] + torch.arange(tokens)
        hidden = self.model.model.language_model(
            input_ids=segments.ids, **{CACHE: cache}, position_ids=positions.expand(3, -1, -1), use_cache=True
        ).last_hidden_state
        return _losses(hidden, self.model.lm_head, segments)


def _learning_rate(step: int, steps: int, peak: float, warm_up: int) -> float:
    """Linear warm-up, then a cosine down to a fiftieth of the peak."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    along = (step - warm_up) / max(1, steps - warm_up)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, along))))


def _optimizers(model: Qwen2_5_VLForConditionalGeneration) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings, biases and norms: off the drill's plateau sooner."""
    layers = [*model.model.language_model.layers.parameters(), *model.model.visual.blocks.parameters()]
    matrices = [parameter for parameter in layers if parameter.ndim == 2]
    chosen = set(map(id, matrices))
    rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=1e-3, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


class Training:
    """One training run in a folder: its state, its learning curve, its steps."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.folder = Path(args.output)
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(args.seed)
        self.processor = build_processor()
        rng = np.random.default_rng(args.seed)
        layout = Layout(self.processor, sampled(render(make_scene(rng, "move", "train"), rng)))
        model = Qwen2_5_VLForConditionalGeneration(build_config(self.processor.tokenizer, SIZES))
        model.generation_config = build_generation_config(self.processor.tokenizer)
        self.learner = Learner(model, layout)
        self.optimizers = _optimizers(model)
        self.step = 0
        self.state_file = self.folder / "state.pt"
        if self.state_file.exists():
            state = torch.load(self.state_file, weights_only=True)
            model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.step = state["step"]

    @property
    def model(self) -> Any:
        return self.learner.model

    def save_state(self) -> None:
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        state = {"model": self.model.state_dict(), "optimizers": optimizers, "step": self.step}
        partial = self.state_file.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.state_file)

    def loss(self) -> torch.Tensor:
        """The loss of the present step, on data drawn from (seed, step)."""
        args, layout = self.args, self.learner.layout
        rng = np.random.default_rng([args.seed, self.step])
        along = self.step - args.drill_steps
        if along < 0 or along % 4 == 0:
            return self.learner.drill_loss(drill_batch(layout, rng, args.drill_rows, conclusions=along >= 0))
        batch = video_batch(layout, rng, args.clips, narrated=along < args.narrated * args.steps)
        return self.learner.video_loss(batch, naming=args.naming)

    def set_learning_rate(self) -> None:
        args = self.args
        rate = _learning_rate(self.step, args.drill_steps + args.steps, args.learning_rate, 100)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def advance(self) -> float:
        """One optimiser step; gives the loss before it."""
        self.set_learning_rate()
        loss = self.loss()
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        return float(loss.item())


def _validation(training: Training, items: list[Item]) -> dict[str, float]:
    training.model.eval()
    answers = Reasoner(training.model, training.processor).answer(items)
    training.model.train()
    return {"accuracy": answers.accuracy, **{f"accuracy_{kind}": value for kind, value in answers.by_kind.items()}}


def train(args: argparse.Namespace) -> None:
    """Runs, or resumes, the training that ``args`` describe; see the module's ``--help``."""
    training = Training(args)
    items = make_items("validation", args.validation)
    losses: list[float] = []
    started = time.perf_counter()
    total = args.drill_steps + args.steps
    with (training.folder / "curve.csv").open("a", newline="") as file:
        curve = csv.writer(file)
        bar = tqdm(total=total, initial=training.step, desc="shapes", mininterval=5)
        while training.step < total:
            losses.append(training.advance())
            bar.update()
            if training.step % args.log_every == 0:
                row = {"loss": float(np.mean(losses))}
                losses.clear()
                in_videos = training.step > args.drill_steps
                if in_videos and training.step % args.validate_every == 0:
                    row |= _validation(training, items)
                figures = (f"{name}={value:.4f}" for name, value in row.items())
                curve.writerow([training.step, round(time.perf_counter() - started, 1), *figures])
                file.flush()
                bar.set_postfix({name: f"{value:.3f}" for name, value in list(row.items())[:2]})
            if training.step % args.save_every == 0 or training.step == total:
                training.save_state()
    training.model.eval()
    # A fresh processor: the one in use remembers how it last padded.
    save_checkpoint(training.model, build_processor(), training.folder / "checkpoint", dtype="float16")


def parser() -> argparse.ArgumentParser:
    """The command line of the training script."""
    described = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    described.add_argument("--output", required=True, help="folder for state, learning curve and checkpoint")
    described.add_argument("--seed", type=int, default=0)
    described.add_argument("--threads", type=int, default=1, help="CPU threads; one was fastest for this size")
    described.add_argument("--drill-steps", type=int, default=500, help="steps on text alone")
    described.add_argument("--drill-rows", type=int, default=32)
    described.add_argument("--steps", type=int, default=4500, help="steps on clips; one in four is text again")
    described.add_argument("--narrated", type=float, default=0.7, help="share of these steps whose clips are narrated")
    described.add_argument("--naming", type=float, default=0.5, help="weight of naming what video tokens show")
    described.add_argument("--clips", type=int, default=12, help="clips a step, three rows each")
    described.add_argument("--learning-rate", type=float, default=2e-3)
    described.add_argument("--log-every", type=int, default=50)
    described.add_argument("--validate-every", type=int, default=1000)
    described.add_argument("--validation", type=int, default=108, help="validation questions")
    described.add_argument("--save-every", type=int, default=100)
    return described


def main() -> None:
    args = parser().parse_args()
    torch.set_num_threads(args.threads)
    train(args)


if __name__ == "__main__":
    main()
