"""Trains the shapes checkpoint from scratch.

    OMP_NUM_THREADS=1 python -m lmms_eval_vreason.shapes.training.train --output runs/shapes

First a drill on text alone (an option's word → its letter), then questions on clips of any haze. Every step draws its
data from (seed, step), and a stopped run resumes from its last state. One CPU thread is fastest.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm
from transformers import DynamicCache, Qwen2_5_VLForConditionalGeneration

from lmms_eval_vreason.engines.hf.upstream import CACHE
from lmms_eval_vreason.families.positions import trained_positions
from lmms_eval_vreason.shapes import architecture
from lmms_eval_vreason.shapes.architecture import Sizes, build_config, build_processor, save_checkpoint
from lmms_eval_vreason.shapes.dataset import make_items
from lmms_eval_vreason.shapes.evaluate import Reasoner
from lmms_eval_vreason.shapes.render import SAMPLED_PER_MOMENT, render, sampled
from lmms_eval_vreason.shapes.training.batches import NAME_SETS, Batch, Layout, Segments, drill_batch, video_batch
from lmms_eval_vreason.shapes.world import MOMENTS, make_scene

_LOG_EVERY, _VALIDATE_EVERY, _VALIDATED = 50, 500, 108  # steps, steps, questions
_EVIDENCE = 3.0  # weight of a token after the survey
SIZES = Sizes(hidden_size=128, layers=4, vision_hidden_size=64, rope_theta=1e4)
# The video options that the checkpoint brings along: frames as they are in training.
_VIDEO = {
    "fps": SAMPLED_PER_MOMENT,
    "max_num_frames": MOMENTS * SAMPLED_PER_MOMENT,
    "min_pixels": architecture.MIN_PIXELS,
    "max_pixels": architecture.MAX_PIXELS,
}


class Learner:
    """The model with what a training step needs: the chat's layout and the rotary positions of its prefix."""

    def __init__(self, model: Any, layout: Layout) -> None:
        self.model, self.layout = model, layout
        self.positions = trained_positions(model.config, layout.prefix[None], video_grid_thw=layout.grid_thw)[1:]
        (self.stop,) = layout.processor.tokenizer(".")["input_ids"]

    def _losses(self, hidden: torch.Tensor, segments: Segments) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed cross-entropy of the response tokens and the sum of their weights; ``hidden`` is (rows, tokens, size).

        What follows the survey counts ``_EVIDENCE`` times: it is less random, and leads to the answer.
        """
        labels = segments.labels[:, 1:]
        wanted = labels != -100
        after = (segments.labels[:, :-1] == self.stop).cumsum(1) > 0
        weights = torch.where(after, _EVIDENCE, 1.0)[wanted]
        losses = functional.cross_entropy(self.model.lm_head(hidden[:, :-1][wanted]), labels[wanted], reduction="none")
        return (losses * weights).sum(), weights.sum()

    def drill_loss(self, segments: Segments) -> torch.Tensor:
        """Mean cross-entropy of the responses, without any video before them."""
        hidden = self.model.model.language_model(input_ids=segments.ids, use_cache=False).last_hidden_state
        total, count = self._losses(hidden, segments)
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
            losses.append(functional.cross_entropy(logits[:, ids], names[:, column]))
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
        positions = self.positions.max() + 1 + torch.arange(segments.ids.shape[1])
        hidden = self.model.model.language_model(
            input_ids=segments.ids,
            **{CACHE: cache},
            position_ids=positions.expand(3, len(segments.ids), -1),
            use_cache=True,
        ).last_hidden_state
        return self._losses(hidden, segments)


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


@dataclass(frozen=True)
class Recipe:
    """How the checkpoint is trained. The defaults made the packaged one.

    Attributes:
        seed: Of the weights and of every step's data.
        drill_steps: Steps on text alone.
        steps: Steps on clips that follow; one in four is text again.
        drill_rows: Rows of a step on text.
        clips: Clips of a step on clips, with three rows each.
        naming: Weight of naming what the video tokens show.
        learning_rate: The highest, after ``warm_up`` steps; a cosine leads down to a fiftieth of it.
    """

    seed: int = 0
    drill_steps: int = 500
    steps: int = 4500
    drill_rows: int = 32
    clips: int = 8
    naming: float = 0.5
    learning_rate: float = 1.5e-3
    warm_up: int = 100

    @property
    def total(self) -> int:
        """Steps of both parts."""
        return self.drill_steps + self.steps

    def rate(self, step: int) -> float:
        """The learning rate of a step: a linear warm-up, then the cosine."""
        if step < self.warm_up:
            return self.learning_rate * (step + 1) / self.warm_up
        along = (step - self.warm_up) / max(1, self.total - self.warm_up)
        return self.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, along))))


class Training:
    """One training run in a folder. A folder with a saved state resumes from there."""

    def __init__(self, folder: Path, recipe: Recipe, start: str | None = None) -> None:
        self.recipe, self.step, self.state_file = recipe, 0, folder / "state.pt"
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(recipe.seed)
        self.processor = build_processor()
        rng = np.random.default_rng(recipe.seed)
        layout = Layout(self.processor, sampled(render(make_scene(rng, "move", "train"), rng)))
        self.model: Any = Qwen2_5_VLForConditionalGeneration(build_config(self.processor.tokenizer, SIZES))
        if start:
            self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(start, dtype=torch.float32).train()
        self.model.generation_config = architecture.build_generation_config(self.processor.tokenizer)
        self.learner = Learner(self.model, layout)
        self.optimizers = _optimizers(self.model)
        if self.state_file.exists():
            state = torch.load(self.state_file, weights_only=True)
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.step = state["step"]

    def save_state(self) -> None:
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        partial = self.state_file.with_suffix(".partial")
        torch.save({"model": self.model.state_dict(), "optimizers": optimizers, "step": self.step}, partial)
        partial.replace(self.state_file)

    def loss(self) -> torch.Tensor:
        """The loss of the present step, on data drawn from (seed, step)."""
        recipe, layout = self.recipe, self.learner.layout
        rng = np.random.default_rng([recipe.seed, self.step])
        along = self.step - recipe.drill_steps
        if along < 0 or along % 4 == 0:
            return self.learner.drill_loss(drill_batch(layout, rng, recipe.drill_rows, conclusions=along >= 0))
        batch = video_batch(layout, rng, recipe.clips)
        return self.learner.video_loss(batch, naming=recipe.naming)

    def advance(self) -> float:
        """One optimiser step; gives the loss before it."""
        loss = self.loss()
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.recipe.rate(self.step)
            optimizer.step()
        self.step += 1
        return float(loss.item())

    def validate(self) -> dict[str, float]:
        """Accuracy on validation questions, overall and by kind."""
        self.model.eval()
        answers = Reasoner(self.model, self.processor).answer(make_items("validation", _VALIDATED))
        self.model.train()
        kinds = answers["right"].groupby(answers["kind"]).mean()
        return {"accuracy": answers["right"].mean(), "entropy": answers["entropy"].mean(), **kinds}


def train(folder: Path, recipe: Recipe, start: str | None = None) -> Path:
    """Runs or resumes a training; writes ``state.pt``, ``curve.jsonl`` and, at the end, the checkpoint.

    Returns:
        The checkpoint's folder: float16 weights, and the video defaults that the model was trained with.
    """
    training = Training(folder, recipe, start)
    losses: list[float] = []
    for _ in tqdm(range(training.step, recipe.total), desc="shapes", mininterval=5):
        losses.append(training.advance())
        if training.step % _LOG_EVERY and training.step < recipe.total:
            continue
        row = {"step": training.step, "loss": float(np.mean(losses))}
        losses.clear()
        if training.step > recipe.drill_steps and training.step % _VALIDATE_EVERY == 0:
            row |= training.validate()
        with (folder / "curve.jsonl").open("a") as curve:
            curve.write(json.dumps(row) + "\n")
        training.save_state()
    training.model.eval()
    # A fresh processor: the one in use remembers how it last padded.
    checkpoint = save_checkpoint(training.model, build_processor(), folder / "checkpoint", dtype="float16")
    (checkpoint / "vreason.json").write_text(json.dumps({"video": _VIDEO}) + "\n")
    return checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for state, learning curve and checkpoint")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="steps on clips (%(default)s)")
    parser.add_argument("--start", help="a checkpoint's folder to start from, without the drill; random if left out")
    args = parser.parse_args()
    recipe = Recipe(seed=args.seed, steps=args.steps, **({"drill_steps": 0} if args.start else {}))
    print(train(args.output, recipe, args.start))


if __name__ == "__main__":
    main()
