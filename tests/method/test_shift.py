"""ΔV over its window, by its definition; in a half-precision cache a step of a useful size arrives."""

import pytest
import torch
from random_model import moved_at_its_norm

from lmms_eval_vreason import VReason
from lmms_eval_vreason.method.shift import Shift


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.1, 1.0, 50.0])
@pytest.mark.parametrize(("rate", "least"), [(0.3, 0.999), (0.01, 0.97)])
def test_a_step_arrives_in_the_cache_whatever_its_scale(dtype, scale, rate, least):
    """The share of V_new - V, rounded to nearest, that is along the exact one."""
    generator = torch.Generator().manual_seed(0)
    values = (scale * torch.randn(2, 2, 300, 16, generator=generator)).to(dtype)
    shift = Shift(
        values, torch.ones(2, 300, dtype=torch.bool), VReason(learning_rate=rate, keep_shift=True, optimizer="adam")
    )
    shift.step(torch.randn(2, 2, 300, 16, generator=generator), torch.tensor([True, True]))
    was = shift.original.double()
    wanted = shift.norm.moved(shift.original + shift.delta).double() - was
    got = shift.moved().double() - was
    assert shift.moved().dtype == dtype
    assert least <= (got * wanted).sum() / wanted.square().sum() <= 2 - least


def test_values_without_a_step_are_written_to_the_bit():
    values = torch.randn(2, 2, 50, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    shift = Shift(values, torch.ones(2, 50, dtype=torch.bool), VReason())
    active = torch.tensor([True, False])
    shift.step(torch.ones(2, 2, 50, 16) * active[:, None, None, None], active)
    moved = shift.moved()
    assert torch.equal(moved[1], values[1])
    assert not torch.equal(moved[0], values[0])


VIDEO = torch.zeros(3, 10, dtype=torch.bool)
VIDEO[0, [3, 4, 6]] = VIDEO[1, 5] = True  # The third sample has none.


def one_shift(**choices):
    values = torch.randn(3, 2, 10, 8, generator=torch.Generator().manual_seed(0))
    return values, Shift(values, VIDEO, VReason(**{"keep_shift": True, "optimizer": "adam", **choices}))


def test_the_window_is_from_the_first_video_token_to_the_last():
    values, shift = one_shift()
    assert shift.video[:, 0, 0].tolist() == VIDEO[:, 3:7].tolist()
    assert torch.equal(shift.window(values), values[:, :, 3:7])
    assert torch.equal(shift.window(VIDEO, dim=1), VIDEO[:, 3:7])
    assert torch.equal(shift.moved(), values[:, :, 3:7])
    assert torch.allclose(shift.unit, values[:, :, 3:7].square().mean(3, keepdim=True).sqrt())


@pytest.mark.parametrize("norm", ["head", "token", "cache", "none"])
def test_a_step_by_its_definition(norm):
    """dL/dV = Σ over query heads of p ⊗ dL/dA; SGD moves ΔV in units of the RMS, at the video tokens alone."""
    values, shift = one_shift(optimizer="sgd", learning_rate=0.5, norm=norm)
    generator, video = torch.Generator().manual_seed(1), VIDEO[:, None, 3:7, None]
    p = torch.rand(3, 2, 3, 4, generator=generator) * VIDEO[:, None, None, 3:7]
    upstream = torch.randn(3, 2, 3, 8, generator=generator)
    gradient = shift.gradient(p, upstream)
    original = values[:, :, 3:7].clone().requires_grad_()
    delta = torch.zeros_like(original).requires_grad_()
    whole = torch.cat(
        [
            moved_at_its_norm(
                original[row][:, VIDEO[row, 3:7]].transpose(0, 1), delta[row][:, VIDEO[row, 3:7]].transpose(0, 1), norm
            )
            .transpose(0, 1)
            .flatten()
            for row in range(2)
        ]
    )
    dense = torch.einsum("bkqw,bkqd->bkwd", p, upstream)
    sparse = torch.cat([dense[row][:, VIDEO[row, 3:7]].flatten() for row in range(2)])
    (reference,) = torch.autograd.grad((whole * sparse).sum(), delta)
    assert torch.allclose(gradient, reference * shift.unit, atol=1e-5)
    shift.step(gradient, torch.tensor([True, True, False]))
    assert torch.allclose(shift.delta, -0.5 * gradient * shift.unit)
    relative = [((shift.delta * video)[row].norm() / (original * video)[row].norm()).item() for row in range(2)]
    assert shift.relative().tolist() == pytest.approx([*relative, 0])
    moved = shift.moved()
    assert torch.equal(moved.masked_select(~video), values[:, :, 3:7].masked_select(~video))
    assert not torch.isclose(moved, values[:, :, 3:7]).masked_select(video).any()
    shift.give_up(torch.tensor([True, False, False]))
    assert torch.equal(shift.moved()[0], values[0, :, 3:7])
    assert torch.equal(shift.moved()[1], moved[1])
    assert shift.relative()[0] == 0


@pytest.mark.parametrize(("keep_shift", "written"), [(True, torch.bfloat16), (False, torch.float32)])
def test_half_precision_goes_into_the_cache_alone(keep_shift, written):
    """ΔV and its gradient are float32, from half-precision inputs as from their float32 copies."""
    values = torch.randn(1, 2, 4, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    p, upstream = torch.rand(1, 2, 3, 4).bfloat16(), torch.randn(1, 2, 3, 8).bfloat16()
    for norm in ("head", "token", "cache", "none"):
        method = VReason(norm=norm, keep_shift=keep_shift)
        half, full = (Shift(v, torch.ones(1, 4, dtype=torch.bool), method) for v in (values, values.float()))
        gradient = half.gradient(p, upstream)
        assert gradient.dtype == half.turns.dtype == torch.float32
        assert torch.equal(gradient, full.gradient(p.float(), upstream.float()))
        assert half.moved().dtype == written


@pytest.mark.parametrize("norm", ["head", "token", "cache", "none"])
@pytest.mark.parametrize("tokens", [2, 4])
def test_what_grows_with_the_prompt_is_named_with_its_dimension(norm, tokens):
    video = torch.zeros(2, 9, dtype=torch.bool)
    video[:, 3 : 3 + tokens] = True
    shift = Shift(torch.randn(2, 2, 9, 8), video, VReason(norm=norm, beta1=0.5))
    before, *wide = shift.by_window()
    assert (before[0].shape, before[1]) == ((5, 0), 0)  # The window's place, and two.
    assert {tensor.shape[dimension] for tensor, dimension in wide} == {tokens}
    named = {id(tensor) for tensor, _ in wide}
    state = [shift.video, shift.original, shift.turns, shift.unit, shift.norm.video, *shift.optimizer.state()[:2]]
    state += [shift.norm.length] if norm in ("head", "token") else []
    assert named == {id(tensor) for tensor in state}


@pytest.mark.parametrize(("keep_shift", "left"), [(True, True), (False, False)])
def test_what_a_due_token_finds_of_the_one_before(keep_shift, left):
    _, shift = one_shift(keep_shift=keep_shift, beta1=0.5)
    shift.step(torch.ones(3, 2, 4, 8), torch.tensor([True] * 3))
    assert all(tensor.any() for tensor in shift.optimizer.state())
    shift.begin()
    assert [bool(tensor.any()) for tensor in (shift.turns, *shift.optimizer.state())] == [left] * 4


@pytest.mark.parametrize(("optimizer", "beta1", "moments"), [("sgd", 0.0, 0), ("adam", 0.0, 1), ("adam", 0.5, 2)])
def test_bytes_between_steps(optimizer, beta1, moments):
    """V, ΔV and the moments, float32; unit and norm for each row; a flag for each token, and what is one a sample."""
    _, shift = one_shift(optimizer=optimizer, beta1=beta1)
    entries, rows, flags, samples = 3 * 2 * 4 * 8, 3 * 2 * 4, 3 * 4, 3
    steps = samples if moments else 0
    assert shift.state_bytes() == 4 * ((2 + moments) * entries + 2 * rows + samples + steps) + flags
