"""bfloat16 and float16 caches: the update reaches them."""

import pytest
import torch
from random_model import Forced, batch, forced_tokens, packed, prompt, random_model, steer
from transformers import LogitsProcessorList

from lmms_eval_vreason import VReason
from lmms_eval_vreason.engines.hf.seam import Seam

SAMPLES = [prompt(seed=1), prompt(seed=2, videos=((2, 4, 6),), text=11)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_the_update_reaches_the_cache_of_a_model(dtype, cache):
    model, tokens = random_model(dtype=dtype), forced_tokens(2, 8)
    settings = {"max_new_tokens": 8, "cache_implementation": cache}
    _, loop = steer(
        model,
        VReason(policy="minimize", keep_shift=True),
        **batch(SAMPLES, dtype),
        **settings,
        logits_processor=LogitsProcessorList([Forced(tokens)]),
    )
    shift, layer = loop.decoding.steering.shift, loop.decoding.cache.layers[-1]
    assert (shift.delta.dtype, shift.original.dtype, layer.values.dtype) == (torch.float32, dtype, dtype)
    moved = shift.norm.moved(shift.original + shift.delta)
    was, written, wanted = (packed(shift, x).double() for x in (shift.original, layer.values, moved))
    assert ((written - was) * (wanted - was)).sum() / (wanted - was).square().sum() == pytest.approx(1.0, abs=0.05)
    spacing = torch.finfo(dtype).eps * wanted.abs().clamp_min(1e-3)
    assert ((written - wanted).abs() <= spacing).all()
    # Each value is rounded for itself, so the norm is kept to the spacing of the cache.
    norms = written.norm(dim=-1) / was.norm(dim=-1)
    assert (norms - 1).abs().max() < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_what_an_update_adds_to_the_attentions_output_is_not_rounded_away(monkeypatch, dtype, attention):
    """A and its probabilities are float32, more exact than the model's own: an update moves them by less."""
    forward, seen = Seam.forward, []

    def noting(self, inputs):
        result = forward(self, inputs)
        reached = result[0]
        p, exact = reached.attention()
        seen.append((exact, p, p.double() @ reached.values.double()))
        return result

    monkeypatch.setattr(Seam, "forward", noting)
    VReason().generate(random_model(dtype=dtype, attention=attention), **batch(SAMPLES, dtype), max_new_tokens=2)
    ((exact, p, reference),) = seen
    assert exact.dtype == p.dtype == torch.float32
    assert (exact - reference).abs().max() <= 1e-6 * reference.abs().max()
    assert torch.allclose(p.sum(-1), torch.ones(()), atol=1e-6)
