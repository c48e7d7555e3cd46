"""The benchmark: its shapes, its byte model against counted bytes, its variants, its measures and the command."""

import json

import pytest
import torch
from transformers import DynamicCache

from lmms_eval_vreason import VReason
from lmms_eval_vreason.bench.measure import Stage, peak_bytes, seconds_per_token
from lmms_eval_vreason.bench.sizes import SHAPES, VIDEO_TOKEN, Prompt, Shape, random_model
from lmms_eval_vreason.bench.traffic import ByteModel
from lmms_eval_vreason.bench.variants import Variant, variants
from lmms_eval_vreason.cli import main
from lmms_eval_vreason.engines.hf.upstream import CACHE

SMALL = Shape(64, 3, 4, 2, 128, 512)


@pytest.fixture(scope="module")
def model():
    return random_model(SMALL, device="cpu", dtype=torch.float32, attention="sdpa")


@pytest.fixture(scope="module")
def prompt(model):
    return Prompt.random(SMALL, model, batch=2, video_tokens=48, text_tokens=8)


@pytest.mark.parametrize("tied", [False, True])
def test_weights_of_a_shape_are_counted_right(tied):
    shape = Shape(64, 3, 4, 2, 128, 512, tied)
    text = random_model(shape, device="cpu", dtype=torch.float32, attention="sdpa")
    matrices = [p for p in text.model.language_model.layers.parameters() if p.dim() == 2]
    head = text.get_output_embeddings().weight
    assert shape.weights() == sum(p.numel() for p in matrices) + head.numel()
    assert (head is text.get_input_embeddings().weight) == tied


def test_published_shapes_have_their_published_sizes():
    """Billions of weights, the embedding counted where it is not the head; the vision tower is not in it."""
    sizes = {"3b": 3.09, "7b": 7.62, "32b": 32.76, "72b": 72.7}
    for name, billions in sizes.items():
        shape = SHAPES[name]
        embedding = 0 if shape.tie_word_embeddings else shape.head_weights()
        assert (shape.weights() + embedding) / 1e9 == pytest.approx(billions, rel=2e-3)


def test_medium_has_the_tail_of_the_7b_model():
    tails = {
        name: (sum(SHAPES[name].layer_weights()) + SHAPES[name].head_weights()) / SHAPES[name].weights()
        for name in ("medium", "7b")
    }
    assert SHAPES["medium"].layers == SHAPES["7b"].layers == 28
    assert 0.10 <= tails["medium"] <= 0.11
    assert 0.10 <= tails["7b"] <= 0.115


def test_rows_of_the_random_weights_differ(model):
    for weight in (model.lm_head.weight, model.model.language_model.layers[-1].mlp.down_proj.weight):
        assert len(weight.unique(dim=0)) == len(weight)
        assert weight.std().item() == pytest.approx(weight.shape[1] ** -0.5, rel=0.05)


def test_cut():
    assert SHAPES["7b"].cut(None) == SHAPES["7b"]
    assert SHAPES["7b"].cut(4).layers == 4
    with pytest.raises(ValueError, match="--layers 29: this shape has 1 to 28 layers"):
        SHAPES["7b"].cut(29)


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


def test_byte_model_counts_what_is_there(model, prompt):
    """Its weights and cache are those of the model; an update's parts are those of the tail."""
    bytes_of = ByteModel(SMALL, itemsize=4, batch=2, video_tokens=48, tokens=56, cache="static")
    cache = DynamicCache(config=model.config.get_text_config())
    states = torch.zeros(2, 2, 56, 16)
    for layer in range(3):
        cache.update(states, states, layer)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert bytes_of.plain() == 4 * SMALL.weights() + held
    refreshed, plain = VReason(), VReason(refresh=False)
    layer, head = sum(SMALL.layer_weights()), SMALL.head_weights()
    difference = bytes_of.update(refreshed, 56) - bytes_of.update(plain, 56)
    assert difference == 4 * (layer + head)
    saved = bytes_of.update(plain, 56) - bytes_of.update(VReason(refresh=False, head_topk=100), 56)
    assert saved == 4 * (512 - 100) * 64


def test_byte_model_ratios():
    """What the project says of the 7B model in bf16 with 4,000 video tokens, computed afresh."""
    bytes_of = ByteModel(SHAPES["7b"], itemsize=2, batch=1, video_tokens=4000, tokens=4200, cache="static")
    assert bytes_of.ratio(None) == bytes_of.ratio(VReason(policy="off")) == 1.0
    assert bytes_of.ratio(VReason()) == pytest.approx(1.11, abs=0.006)
    assert bytes_of.ratio(VReason(refresh=False)) == pytest.approx(1.056, abs=0.004)
    assert bytes_of.ratio(VReason(refresh=False, head_topk=1024)) == pytest.approx(1.019, abs=0.004)
    excess = [bytes_of.ratio(VReason(update_every=every)) - 1 for every in (1, 2, 4)]
    assert excess[0] == pytest.approx(2 * excess[1]) == pytest.approx(4 * excess[2])
    assert bytes_of.ratio(VReason(), full_forward=True) > 1.5
    assert bytes_of.ratio(VReason(prune_ratio=0.5)) < bytes_of.ratio(VReason())


def test_variants_cover_the_table():
    rows = variants(compiled=True)
    assert rows[0].method is None
    assert len({row.name for row in rows}) == len(rows)
    for refresh, topk in ((True, 0), (False, 0), (False, 1024)):
        every = {
            row.method.update_every
            for row in rows
            if row.method and row.method.steers and (row.method.refresh, row.method.head_topk) == (refresh, topk)
        }
        assert every == {1, 2, 4, 8}
    assert any(row.method and row.method.prune_ratio == 0.5 for row in rows)
    assert sum(row.full_forward for row in rows) == 2
    assert {row.cache for row in rows if "compiled" in row.name} == {"static"}


def test_the_naive_way_gives_the_same_tokens(model, prompt):
    """A second forward over the moved cache is what the refresh of the tail replaces."""
    method = VReason(learning_rate=0.5, policy="minimize")
    inputs = {"kind": "dynamic", "new_tokens": 12}
    naive = Variant("naive", method, full_forward=True).generate(model, **prompt.inputs(model, **inputs))
    ours = Variant("ours", method).generate(model, **prompt.inputs(model, **inputs))
    plain = Variant("plain").generate(model, **prompt.inputs(model, **inputs))
    assert torch.equal(naive, ours)
    assert not torch.equal(naive, plain)


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
    shape = Shape(256, 12, 4, 2, 1024, 4096)
    model = random_model(shape, device="cpu", dtype=torch.float32, attention="sdpa")
    prompt = Prompt.random(shape, model, batch=1, video_tokens=128)
    plain = peak_bytes(Variant("plain"), Stage(model, prompt, 9))
    values = 128 * shape.kv_heads * shape.head_dim
    for method in (VReason(), VReason(refresh=False, head_topk=1024), VReason(update_every=1, steps_per_update=2)):
        ours = peak_bytes(Variant("ours", method), Stage(model, prompt, 9))
        assert plain < ours <= plain * 1.01 + values * (4 + 3 * 4)


def test_command(tmp_path, capsys):
    output = tmp_path / "figures" / "bench.json"
    arguments = ["bench", "--shape", "tiny", "--layers", "2", "--rounds", "2", "--video-tokens", "24", "--batch", "2"]
    assert main([*arguments, "--only", "update_every 2", "--device", "cpu", "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    printed = capsys.readouterr()
    assert "2 of 4 layers measured: ratios are scaled to the whole by the byte model" in printed.out
    assert "timing" in printed.err
    names = [row["name"] for row in report["variants"]]
    assert names[0] == "plain generate"
    assert "update_every 2, no refresh, head_topk 1024" in names
    assert not any("update_every 4" in name for name in names)
    for row in report["variants"]:
        assert row["name"] in printed.out.replace("\n", " ")
        assert len(row["seconds_per_token"]) == 2
        low, high = row["ratio_quartiles"]
        assert low <= row["ratio"] <= high
        assert row["peak_bytes"] > 0
    steered = next(row for row in report["variants"] if row["name"] == "update_every 2")
    cut, whole = (
        ByteModel(shape, itemsize=4, batch=2, video_tokens=24, tokens=24 + 64 + 4, cache="dynamic")
        for shape in (SHAPES["tiny"].cut(2), SHAPES["tiny"])
    )
    method = VReason(min_entropy=0.0)
    excess = (steered["ratio_measured"] - cut.ratio(method)) * cut.plain() / whole.plain()
    assert steered["ratio"] == pytest.approx(whole.ratio(method) + excess)
    assert {"cpu", "torch", "transformers"} <= set(report["machine"])


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
