"""What is allowed: every bad value is refused by name, and presets are changes of the defaults."""

import dataclasses
import re

import pytest

from lmms_eval_vreason import VReason
from lmms_eval_vreason.method.config import CHOICES, PRESETS, RANGES

BAD = {
    "policy": ["explore", None, 1],
    "learning_rate": [-0.1, float("nan"), float("inf"), "0.1", True],
    "update_every": [0, -2, 1.5, "2"],
    "refresh": [1, "yes", None],
    "keep_shift": [0, "no"],
    "ema_correction": [1, "on"],
    "beta1": [-0.1, 1.0],
    "beta2": [1.0, None],
    "head_tail": [-0.1, 1.0],
    "ema_decay": [-0.1, 1.0, 2],
    "objective": ["kl"],
    "optimizer": ["adamw"],
    "steps_per_update": [0, 1.0],
    "norm": ["head_dim", True],
    "min_entropy": [-1e-9, float("inf"), None],
    "head_topk": [-1, 1.0],
    "prune_ratio": [1.0, -0.5, False],
    "prune_score": ["attention"],
    "compile": [True, "yes"],
    "seed": [-1, 0.5, None],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_value_is_named_with_what_is_allowed(name, value):
    with pytest.raises(ValueError, match=f"{name}={value!r}".replace("(", r"\(")) as caught:
        VReason(**{name: value})
    message = str(caught.value)
    if name in CHOICES:
        assert all(choice in message for choice in CHOICES[name])
    else:
        assert "True or False" in message or "must be a number" in message or "is outside" in message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"policy": "explore"}, "policy='explore' is not one of switch, minimize, maximize, random, off"),
        ({"refresh": 1}, "refresh=1 must be True or False"),
        ({"learning_rate": True}, "learning_rate=True must be a number (float)"),
        ({"update_every": 1.5}, "update_every=1.5 must be a number (int)"),
        ({"learning_rate": -0.1}, "learning_rate=-0.1 is outside [0, inf)"),
        ({"ema_decay": 1.0}, "ema_decay=1.0 is outside [0, 1)"),
        ({"seed": 2**63}, f"seed={2**63} is outside [0, 9.22337e+18)"),
    ],
)
def test_a_refusal_in_full(given, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        VReason(**given)


def test_every_field_is_covered_here_and_checked():
    names = {field.name for field in dataclasses.fields(VReason)}
    assert set(BAD) == names
    flags = {field.name for field in dataclasses.fields(VReason) if field.type is bool}
    assert set(CHOICES) | set(RANGES) | flags == names


def test_defaults_are_the_documented_ones_and_frozen():
    method = VReason()
    assert (method.policy, method.update_every, method.ema_decay) == ("switch", 2, 0.9)
    assert (method.norm, method.objective, method.optimizer) == ("head", "kl_p_u", "nsgd")
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.update_every = 3


def test_the_ends_of_the_ranges_are_allowed():
    VReason(learning_rate=0, ema_decay=0, min_entropy=0, head_topk=0, prune_ratio=0, seed=0)
    VReason(learning_rate=1, ema_decay=0.999, update_every=1000, prune_ratio=0.99)


def test_a_shift_that_is_not_kept_needs_the_refresh():
    with pytest.raises(ValueError, match=r"^keep_shift=False needs refresh=True"):
        VReason(keep_shift=False, refresh=False)


def test_presets_are_changes_of_the_defaults_and_arguments_win():
    assert VReason.preset("default") == VReason()
    assert VReason.preset("gentle").learning_rate < VReason().learning_rate
    assert not VReason.preset("strong").keep_shift
    assert VReason.preset("strong", keep_shift=True, seed=3) == VReason(
        **{**PRESETS["strong"], "keep_shift": True}, seed=3
    )
    with pytest.raises(ValueError, match="preset='wild' is not one of gentle, default, strong"):
        VReason.preset("wild")


def test_when_updates_are_due_and_whether_there_are_any():
    assert [token for token in range(9) if VReason(update_every=3).is_due(token)] == [2, 5, 8]
    assert [token for token in range(4) if VReason(update_every=1).is_due(token)] == [1, 2, 3]
    assert VReason(learning_rate=0.5).steers
    assert not VReason(learning_rate=0.0).steers
    assert not VReason(policy="off").steers
