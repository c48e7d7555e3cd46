"""The benchmark: its shapes, its variants, its measures and the command."""

import json
import os
import resource
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, LogitsProcessor, LogitsProcessorList

from lmms_eval_vreason import VReason
from lmms_eval_vreason.bench import steps
from lmms_eval_vreason.bench.measure import Stage, gated, peak_bytes, seconds_per_token, updated_share
from lmms_eval_vreason.bench.sizes import SHAPES, VIDEO_TOKEN, Prompt, random_model, shape_of
from lmms_eval_vreason.bench.stack import on_roomy_stack
from lmms_eval_vreason.bench.variants import Variant, variants
from lmms_eval_vreason.cli import build_parser, main
from lmms_eval_vreason.engines.hf.upstream import CACHE
from lmms_eval_vreason.shapes.architecture import Sizes, build_config
from lmms_eval_vreason.shapes.vocabulary import build_tokenizer

SMALL = Sizes(64, 3, 4, 2, 128, 512, False)


@pytest.fixture(scope="module")
def model():
    return random_model(SMALL, device="cpu", dtype=torch.float32, attention="sdpa")


@pytest.fixture(scope="module")
def prompt(model):
    return Prompt.random(SMALL, model, batch=2, video_tokens=48, text_tokens=8)


def decoder_weights(name):
    """Of a shape laid out without memory: (all but the vision tower, the last layer and the head)."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(build_config(build_tokenizer(), SHAPES[name]))
    model.tie_weights()
    sizes = {name: p.numel() for name, p in model.named_parameters() if "visual" not in name}
    last = f"layers.{SHAPES[name].layers - 1}."
    head = model.get_output_embeddings().weight.numel()
    return sum(sizes.values()), head + sum(size for name, size in sizes.items() if last in name)


@pytest.mark.parametrize(("name", "billions"), [("3b", 3.09), ("7b", 7.62), ("32b", 32.76), ("72b", 72.7)])
def test_published_shapes_have_their_published_sizes(name, billions):
    assert decoder_weights(name)[0] / 1e9 == pytest.approx(billions, rel=2e-3)


@pytest.mark.parametrize("name", ["medium", "7b"])
def test_medium_has_the_tail_of_the_7b_model(name):
    """Of the weights that a token reads, which are all but the embedding."""
    weights, tail = decoder_weights(name)
    assert SHAPES[name].layers == 28
    assert 0.10 <= tail / (weights - SHAPES[name].hidden_size * SHAPES[name].vocabulary) <= 0.115


def test_tokens_are_as_sure_as_a_trained_models(model, prompt):
    """A flat distribution would cost more than a real one: all rows of the head would take part."""
    generation = Stage(model, prompt, 8).generate(Variant("", VReason(policy="off")), 64)
    entropies = torch.tensor([list(trace.entropy) for trace in generation.traces])
    assert 0.6 < entropies.mean() < 2.2
    assert entropies.std() > 0.3


def test_rows_of_the_random_weights_differ(model):
    for weight in (model.lm_head.weight, model.model.language_model.layers[-1].mlp.down_proj.weight):
        assert len(weight.unique(dim=0)) == len(weight)
        assert weight.std().item() == pytest.approx(weight.shape[1] ** -0.5, rel=0.05)


def test_layers_are_cut():
    assert shape_of("7b", None) == SHAPES["7b"]
    assert shape_of("7b", 4) == replace(SHAPES["7b"], layers=4)
    with pytest.raises(ValueError, match="--layers 29: this shape has 1 to 28 layers"):
        shape_of("7b", 29)


def test_prompt_is_cached_but_for_its_last_token(model, prompt):
    inputs = prompt.inputs(model, kind="dynamic", new_tokens=4)
    assert prompt.input_ids.shape == (2, 56)
    assert (prompt.input_ids == VIDEO_TOKEN).sum(1).tolist() == [48, 48]
    assert inputs[CACHE].get_seq_length() == 55
    first, second = (model.generate(**prompt.inputs(model, kind=kind, new_tokens=4)) for kind in ("dynamic", "static"))
    assert first.shape == (2, 60)
    assert torch.equal(first, second)


def test_a_static_cache_is_used_again(model, prompt):
    """In the same place, and as good as new."""
    first = prompt.inputs(model, kind="static", new_tokens=4)
    tokens = model.generate(**first)
    place = first[CACHE].layers[0].keys.data_ptr()
    again = prompt.inputs(model, kind="static", new_tokens=4)
    assert again[CACHE].layers[0].keys.data_ptr() == place
    assert torch.equal(model.generate(**again), tokens)
    prompt.kept.clear()


def test_variants_cover_the_table():
    rows = variants(compiled=True)
    assert rows[0].method is None
    assert len({row.name for row in rows}) == len(rows)
    steered = [row.method for row in rows if row.method and row.method.steers]
    assert {method.update_every for method in steered} == {1, 2, 4, 8}
    assert {(method.head_topk, method.refresh) for method in steered} >= {(1024, True), (0, True), (0, False)}
    several = [method for method in steered if method.steps_per_update > 1]
    assert {method.steps_per_update for method in several} == {4, 10}
    for method in several:
        assert (method.keep_shift, method.optimizer, method.update_every) == (False, "nsgd", 2)
    assert all(method.head_topk for method in several)
    (strong,) = (row for row in rows if row.passing is not None)
    assert (strong.passing, strong.method) == (0.57, VReason.preset("strong", min_entropy=0.0, compile="off"))
    assert any(method.prune_ratio == 0.5 for method in steered)
    compiled = [row for row in rows if "compiled" in row.name]
    assert compiled == [row for row in rows if row.compiled]
    assert {row.method.compile for row in compiled if row.method} == {"on"}
    assert {row.baseline for row in compiled} == {"plain generate, compiled"}
    assert [row.name for row in variants(False, ["steps", "Lite"])] == ["plain generate", "Lite", "4 steps", "10 steps"]


class SecondForward(LogitsProcessor):
    """The refresh as one would write it at first: the whole model runs again over the updated cache."""

    def __init__(self, model, method):
        self.model, self.method, self.token = model, method, 0
        self.hook = model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, model, args, kwargs):
        self.inputs = kwargs

    @torch.no_grad()
    def __call__(self, input_ids, scores):
        if self.method.is_due(self.token):
            self.inputs[CACHE].crop(-1)
            scores = self.model(**self.inputs).logits[:, -1].to(scores)
        self.token += 1
        return scores


def test_the_naive_way_gives_the_same_tokens(model, prompt):
    """A second forward over the moved cache is what the refresh of the tail replaces."""
    method = VReason(policy="minimize", head_topk=0, keep_shift=True)
    inputs = {"kind": "dynamic", "new_tokens": 12}
    refresh = SecondForward(model, method)
    try:
        processors = LogitsProcessorList([refresh])
        unrefreshed = Variant("naive", replace(method, refresh=False))
        naive = unrefreshed.generate(model, **prompt.inputs(model, **inputs), logits_processor=processors)
    finally:
        refresh.hook.remove()
    ours = Variant("ours", method).generate(model, **prompt.inputs(model, **inputs))
    plain = Variant("plain").generate(model, **prompt.inputs(model, **inputs))
    assert torch.equal(naive.sequences, ours.sequences)
    assert not torch.equal(naive.sequences, plain.sequences)


@pytest.mark.parametrize("passing", [0.25, 0.5, 0.75])
def test_the_gate_lets_its_share_of_plain_tokens_pass(passing, model, prompt):
    """At a learning rate next to 0 the tokens are plain ``generate``'s, and so are their entropies."""
    stage = Stage(model, prompt, tokens=32)
    method = VReason.preset("strong", learning_rate=1e-9, compile="off")
    row = gated(Variant("strong", method), stage, passing)
    assert replace(row.method, min_entropy=0.5) == method
    assert updated_share(row, stage) == pytest.approx(passing, abs=1 / 32)
    assert updated_share(Variant("all", replace(method, min_entropy=0.0)), stage) == 1
    assert updated_share(Variant("", replace(method, min_entropy=0.0, update_every=2)), stage) == 0.5
    assert updated_share(Variant("plain"), stage) == 0


def faults_by_depth(deepest=300):
    """Minor page faults of 300 calls, by the number of Python frames around them."""
    counts = []

    def leaf():
        return None

    def at(depth):
        if depth:
            at(depth - 1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(300):
            leaf()
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

    at(deepest)
    return counts


def test_no_depth_of_the_stack_is_dearer_than_another():
    """At the end of a chunk of frames each call maps memory anew; on a stack with room there is no such end."""
    assert max(faults_by_depth()) >= 300
    assert max(on_roomy_stack(faults_by_depth)) < 100


def test_timing_counts_decoding_steps_only(model, prompt):
    calls = []
    hook = model.model.language_model.register_forward_pre_hook(lambda *args: calls.append(1))
    try:
        seconds = seconds_per_token(Variant("plain"), Stage(model, prompt, tokens=8))
    finally:
        hook.remove()
    assert len(calls) == 9
    assert 0 < seconds < 1


def test_peak_memory_is_the_weights_and_what_is_allocated(model, prompt):
    """A longer prompt adds its cache; the method adds its state, and next to nothing more."""
    weights = sum(p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
    cache = sum(states.nbytes for states in (*prompt.keys, *prompt.values))
    plain = peak_bytes(Variant("plain"), Stage(model, prompt, 9))
    assert weights + cache < plain < weights + 2 * cache


def test_peak_over_plain_is_the_controllers_state():
    """With the tail's and the prompt's shares of the 7B model: at most the controller's state and 1%."""
    shape = Sizes(256, 12, 4, 2, 1024, 4096, False)
    model = random_model(shape, device="cpu", dtype=torch.float32, attention="sdpa")
    prompt = Prompt.random(shape, model, batch=1, video_tokens=128)
    plain = peak_bytes(Variant("plain"), Stage(model, prompt, 9))
    values = 128 * shape.kv_heads * shape.head_dim
    for method in (
        VReason(),
        VReason(refresh=False, keep_shift=True, head_topk=0),
        VReason(update_every=1, steps_per_update=2),
    ):
        ours = peak_bytes(Variant("ours", method), Stage(model, prompt, 9))
        assert plain < ours <= plain * 1.01 + values * (4 + 3 * 4)


def test_command(tmp_path, capsys):
    output = tmp_path / "figures" / "bench.json"
    arguments = ["bench", "--shape", "tiny", "--layers", "2", "--rounds", "2", "--tokens", "8", "--batch", "2"]
    arguments += ["--video-tokens", "24,48", "--only", "default", "steps", "--device", "cpu", "--output", str(output)]
    assert main(arguments) == 0
    report = json.loads(output.read_text())
    printed = capsys.readouterr()
    assert "tiny: 2 layers of 4 (with all of them the ratios are lower)" in printed.out
    assert "timing" in printed.err
    names = ["plain generate", "default", "4 steps", "10 steps"]
    rows = report["variants"]
    assert [(row["name"], row["video_tokens"]) for row in rows] == [(n, v) for v in (24, 48) for n in names]
    for row in rows:
        assert row["batch"] == 2
        assert row["updated"] == (0 if row["name"] == "plain generate" else 0.5)
        seconds, around = row["seconds_per_token"], row["seconds_per_token_of_plain_around"]
        ratios = sorted(mine / plain for mine, plain in zip(seconds, around, strict=True))
        assert row["ratio"] == pytest.approx(sum(ratios) / 2)
        assert row["ratio_quartiles"] == pytest.approx([(3 * low + high) / 4 for low, high in (ratios, ratios[::-1])])
        assert row["milliseconds_per_token"] == pytest.approx(500 * sum(seconds))
        plain = row["peak_megabytes"] / row["peak_ratio"]
        assert 0 < plain == pytest.approx(row["peak_megabytes"] - row["megabytes_over_plain"])
    assert {"cpu", "torch", "transformers"} <= set(report["machine"])


def test_a_ratio_is_to_the_plain_runs_around_it(model, prompt, monkeypatch):
    """Plain ``generate`` gets slower from run to run, and so does the variant between."""
    clock = iter(range(1, 100))
    monkeypatch.setattr(
        steps, "seconds_per_token", lambda row, stage: next(clock) * (1.0 if row.method is None else 3.0)
    )
    timings = steps._rounds(variants(False, ["default"]), Stage(model, prompt, 8), 4)
    for mine, plain in timings["default"]:
        assert mine == pytest.approx(3 * plain)
    for mine, plain in timings["plain generate"]:
        assert mine == pytest.approx(plain)
    assert [len(runs) for runs in timings.values()] == [4, 4]


def test_growth_is_printed_as_the_overheads_share(capsys):
    figures = {"batch": 1, "updated": 0.5, "milliseconds_per_token": 2, "ratio_quartiles": [1, 1]}
    figures |= {"peak_megabytes": 1, "peak_ratio": 1, "megabytes_over_plain": 0}
    rows = [{"name": "default", "video_tokens": n, "ratio": r, **figures} for n, r in ((256, 1.05), (1024, 1.0425))]
    settings = {"video_tokens": [256, 1024], "dtype": "float32", "attention": "sdpa", "rounds": 2, "tokens": 8}
    machine = {"cpu": "a CPU", "torch": "2", "transformers": "5", "lmms-eval": "0", "python": "3"}
    settings |= {"device": "cpu", "threads": 1}
    shape = {"name": "tiny", "layers": 4}
    steps.show({"variants": rows, "settings": settings, "machine": machine, "shape": shape, "clock": "CPU time"})
    printed = capsys.readouterr().out
    assert "shape tiny: 4 layers; " in printed
    assert "default, batch 1: 5.0%, 4.2%; within 0.8%" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "12"], "--tokens 12 must be a multiple of 8"),
        (["--shape", "tiny", "--layers", "9"], "--layers 9: this shape has 1 to 4 layers"),
        (["--device", "cuda:77"], "--device cuda:77: torch sees"),
        (["--compiled", "--device", "cpu"], "--compiled on cpu: plain generate compiles on CUDA only"),
        (["--device", "gpu"], "--device gpu: torch has no such device"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys, tmp_path):
    assert main(["bench", *arguments, "--output", str(tmp_path / "x.json")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("vreason: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_numbers_of_the_command_line(value, capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--rounds", value])
    assert "must be a whole number, at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_gpu_script_gives_commands_that_exist(device, tmp_path):
    """Each call is written down by a stand-in, and the real parser takes it."""
    stand_in = tmp_path / "vreason"
    stand_in.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {tmp_path}/calls\n')
    stand_in.chmod(0o755)
    script = Path(__file__).parents[2] / "docs" / "gpu.sh"
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "DEVICE": device}
    subprocess.run(["sh", script, tmp_path / "figures"], env=env, check=True, capture_output=True)
    calls = [build_parser().parse_args(shlex.split(line)) for line in (tmp_path / "calls").read_text().splitlines()]
    assert {(args.shape, args.device) for args in calls} == {("7b", device)}
    assert [Path(args.output).name for args in calls] == ["steps.json", "growth.json", "end_to_end.json"]
    assert [args.end_to_end for args in calls] == [False, False, True]
    assert [args.compiled for args in calls] == [True if device == "cuda" else None, None, None]
    assert calls[1].video_tokens == [256, 1024, 4096, 16384]
