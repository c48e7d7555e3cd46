"""The same requests through both engines: prompts with videos, and what each engine makes of them."""

from contextlib import contextmanager

import numpy as np
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from lmms_eval_vreason import VReason, generate
from lmms_eval_vreason.engines.vllm.engine import Engine, Settings
from lmms_eval_vreason.families.family import family_of
from lmms_eval_vreason.media.frames import Frames
from lmms_eval_vreason.run.inputs import PromptProcessor
from lmms_eval_vreason.shapes.architecture import build_generation_config, build_processor, random_checkpoint

TOKENS = 40
PIXELS = {"shortest_edge": 56 * 56, "longest_edge": 12845056}
ROTARY = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
MARKS = {"image_pad": "image", "video_pad": "video", "vision_start": "vision_start", "vision_end": "vision_end"}


def peaked_checkpoint(folder):
    """A random checkpoint that ends no text; its final norm is scaled, or all tokens would be nearly equally likely."""
    random_checkpoint(folder, layers=3, hidden_size=128, seed=1, repetition_penalty=1.05, tie_word_embeddings=False)
    model = load(folder)
    _peak(model)
    model.save_pretrained(folder)
    return folder


def qwen3_checkpoint(folder):
    """A random Qwen3-VL of the same kind, on the tiny checkpoints' tokenizer."""
    base = build_processor()
    tokens = {name: base.tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in (*MARKS, "endoftext", "im_end")}
    patches = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2}
    # vLLM normalises videos, too, by what the image processor says.
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=PIXELS, **patches, **half),
        video_processor=Qwen3VLVideoProcessor(size=PIXELS, **patches, **half),
        tokenizer=base.tokenizer,
        chat_template=base.chat_template,
    )
    text = {"vocab_size": len(base.tokenizer), "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "initializer_range": 0.04}
    text |= {"max_position_embeddings": 4096, "bos_token_id": None, "pad_token_id": tokens["endoftext"]}
    text |= {"eos_token_id": tokens["im_end"], "rope_parameters": ROTARY}
    vision = {"depth": 3, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": 128}
    vision |= {"patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    marks = {f"{name}_token_id": tokens[mark] for name, mark in zip(MARKS.values(), MARKS, strict=True)}
    torch.manual_seed(3)
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **marks)
    model = Qwen3VLForConditionalGeneration(config).eval()
    model.generation_config = build_generation_config(base.tokenizer)
    _peak(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _peak(model):
    with torch.no_grad():
        model.get_decoder().norm.weight.mul_(5.0)
        # Never the likeliest: no answer ends before its tokens run out.
        model.get_output_embeddings().weight[model.generation_config.eos_token_id] = 0.0


def load(folder):
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def requests(processor, count, *, seed=0):
    """(prompt, frames), of several lengths and rates; the fourth has no video."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        frames = 2 * (1 + i % 3)
        side = 2 * processor.video_processor.patch_size
        size = (2 + i % 2) * side, 3 * side
        pixels = torch.randint(0, 256, (frames, 3, *size), generator=generator).float()
        metadata = {"fps": 2.0 + 0.3 * i, "frames_indices": list(range(0, frames * 5, 5)), "video_backend": "decord"}
        media = [] if i == 3 else [Frames(pixels, {**metadata, "total_num_frames": frames * 5})]
        content = [*([{"type": "video"}] if media else []), {"type": "text", "text": "what " + "red " * i + "shape?"}]
        turns = [{"role": "user", "content": content}]
        made.append((processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True), media))
    return made


def inputs_of(model, processor, text, media):
    """A request's keyword arguments of ``generate``."""
    return PromptProcessor(processor, family_of(model)).process([text], [media])


@torch.no_grad()
def by_transformers(folder, method, count=6, tokens=TOKENS):
    """(tokens, trace) of each request from the transformers engine, one by one."""
    model, processor = load(folder), AutoProcessor.from_pretrained(folder)
    results = []
    for text, media in requests(processor, count):
        inputs = inputs_of(model, processor, text, media)
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
