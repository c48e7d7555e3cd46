"""The byte model: decoding a token means reading weights and cache, so a method costs what it reads besides."""

from dataclasses import dataclass

from lmms_eval_vreason.bench.sizes import Shape
from lmms_eval_vreason.method import VReason

# A dynamic cache is read and written anew at each token (concatenation) before attention reads it.
_CACHE_PASSES = {"dynamic": 3, "static": 1}
# Passes over ΔV and Adam's two moments (float32) at an update: gradient through the norm, moments, step, V_new.
_CONTROLLER_PASSES = 10


@dataclass(frozen=True)
class ByteModel:
    """Bytes that move for one decoded token.

    Attributes:
        shape: The decoder.
        itemsize: Bytes of a weight and of a cached value.
        batch: Samples.
        video_tokens, tokens: Video tokens and cached tokens of each sample.
        cache: ``dynamic`` or ``static``.
    """

    shape: Shape
    itemsize: int
    batch: int
    video_tokens: int
    tokens: int
    cache: str = "dynamic"

    def layer_cache(self, tokens: float) -> float:
        """Keys and values of one layer."""
        return 2 * self.batch * tokens * self.shape.kv_heads * self.shape.head_dim * self.itemsize

    def plain(self, tokens: float | None = None) -> float:
        """One ordinary token."""
        tokens = self.tokens if tokens is None else tokens
        cache = self.shape.layers * self.layer_cache(tokens) * _CACHE_PASSES[self.cache]
        return self.shape.weights() * self.itemsize + cache

    def update(self, method: VReason, tokens: float) -> float:
        """One update of the last layer's values: the tail's backward pass, the controller, the refresh."""
        inputs, outputs = self.shape.layer_weights()
        head = self.shape.head_weights()
        rows = min(method.head_topk or self.shape.vocabulary, self.shape.vocabulary)
        backward = outputs + rows * self.shape.hidden_size
        weights = backward * method.steps_per_update
        if method.refresh:
            weights += inputs + outputs + head
        dropped = self.tokens - tokens
        values = self.batch * (self.video_tokens - dropped) * self.shape.kv_heads * self.shape.head_dim
        controller = values * (3 * self.itemsize + 4 * _CONTROLLER_PASSES)
        # The attention's probabilities are computed from the keys once more.
        keys = self.layer_cache(tokens) / 2
        return weights * self.itemsize + controller + keys

    def ratio(self, method: VReason | None, *, full_forward: bool = False) -> float:
        """The time of one token over plain ``generate``'s, if time is bytes; ``full_forward``: the naive refresh."""
        if method is None or not method.steers:
            return 1.0
        tokens = self.tokens - int(method.prune_ratio * self.video_tokens)
        excess = self.update(method, tokens) + (self.plain(tokens) if full_forward else 0.0)
        return (self.plain(tokens) + excess / method.update_every) / self.plain()
