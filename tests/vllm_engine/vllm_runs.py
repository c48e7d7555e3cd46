"""The same requests through both engines: prompts with videos, and what each engine makes of them."""

from contextlib import contextmanager

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from lmms_eval_vreason import VReason, generate
from lmms_eval_vreason.engines.vllm.engine import Engine, Settings
from lmms_eval_vreason.media.frames import Frames
from lmms_eval_vreason.run.inputs import process
from lmms_eval_vreason.shapes.architecture import random_checkpoint

TOKENS = 40


def peaked_checkpoint(folder):
    """A random checkpoint that ends no text; its final norm is scaled, or all tokens would be nearly equally likely."""
    random_checkpoint(folder, layers=3, hidden_size=128, seed=1, repetition_penalty=1.05, tie_word_embeddings=False)
    model = load(folder)
    with torch.no_grad():
        model.get_decoder().norm.weight.mul_(5.0)
        # Never the likeliest: no answer ends before its tokens run out.
        model.get_output_embeddings().weight[model.generation_config.eos_token_id] = 0.0
    model.save_pretrained(folder)
    return folder


def load(folder):
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def requests(processor, count, *, seed=0):
    """(prompt, frames), of several lengths and rates; the fourth has no video."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        frames = 2 * (1 + i % 3)
        pixels = torch.randint(0, 256, (frames, 3, 56 + 28 * (i % 2), 84), generator=generator).float()
        metadata = {"fps": 2.0 + 0.3 * i, "frames_indices": list(range(0, frames * 5, 5)), "video_backend": "decord"}
        media = [] if i == 3 else [Frames(pixels, {**metadata, "total_num_frames": frames * 5})]
        content = [*([{"type": "video"}] if media else []), {"type": "text", "text": "what " + "red " * i + "shape?"}]
        turns = [{"role": "user", "content": content}]
        made.append((processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True), media))
    return made


@torch.no_grad()
def by_transformers(folder, method, count=6, tokens=TOKENS):
    """(tokens, trace) of each request from the transformers engine, one by one."""
    model, processor = load(folder), AutoProcessor.from_pretrained(folder)
    results = []
    for text, media in requests(processor, count):
        inputs = process(processor, [text], [media])
        result = generate(model, method, **inputs, max_new_tokens=tokens, do_sample=False)
        results.append((result.new_tokens(inputs["input_ids"].shape[1])[0], result.traces[0]))
    return results


@contextmanager
def engine(folder, method, **arguments):
    """An engine with little memory."""
    small = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 16, "gpu_memory_utilization": 0.3}
    built = Engine(method, model=str(folder), **{**small, **arguments})
    try:
        yield built
    finally:
        built.close()


def by_vllm(folder, method, count=6, tokens=TOKENS, order=None, **arguments):
    """(tokens, trace) of each request from vLLM, all submitted at once, in ``order``."""
    with engine(folder, method, **arguments) as built:
        return answers(built, requests(AutoProcessor.from_pretrained(folder), count), tokens, order)


def answers(built, made, tokens=TOKENS, order=None):
    for i in order or range(len(made)):
        built.submit(str(i), *made[i], Settings({"max_new_tokens": tokens}))
    finished = {int(each.key): (each.tokens, each.trace) for each in built.finished()}
    return [finished[i] for i in range(len(made))]


def worker_of(built):
    """The worker, which is in this process."""
    worker = built.llm.llm_engine.engine_core.engine_core.model_executor.driver_worker
    return getattr(worker, "worker", worker)


def assert_equal_runs(ours, theirs, *, atol=1e-4):
    """The same tokens, and the same figures at each of them."""
    for (tokens, trace), (other_tokens, other) in zip(ours, theirs, strict=True):
        assert tokens == other_tokens
        assert trace.updates == other.updates
        assert trace.video_tokens == other.video_tokens
        assert trace.note == other.note
        for name in ("entropy", "ema", "peak", "alpha", "entropy_change", "changed", "shift"):
            values = getattr(trace, name), getattr(other, name)
            assert np.allclose(*values, rtol=1e-4, atol=atol, equal_nan=True), name
    assert any(trace.updates for _, trace in theirs) or not theirs


STEERED = VReason(policy="switch")
