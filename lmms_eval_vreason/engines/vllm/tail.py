"""The last decoder layer after its attention, and the head, in plain torch: vLLM's own layers have no gradients."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmms_eval_vreason.families.family import VocabularyHead

# What the tail reads of the last layer, by its place in there.
_LAYER = {
    "qkv": "self_attn.qkv_proj.weight",
    "o": "self_attn.o_proj.weight",
    "gate_up": "mlp.gate_up_proj.weight",
    "down": "mlp.down_proj.weight",
    "norm_in": "input_layernorm.weight",
    "norm_post": "post_attention_layernorm.weight",
}
_OPTIONAL = {"qkv_bias": "self_attn.qkv_proj.bias", "q_norm": "self_attn.q_norm.weight"}


def weights_of(model: Any) -> dict[str, Tensor]:
    """The last layer's weights and the final norm's, as the model holds them."""
    decoder = model.language_model.model
    parameters = dict(decoder.layers[-1].named_parameters())
    found = {name: parameters[place].detach() for name, place in _LAYER.items()}
    found |= {name: parameters[place].detach() for name, place in _OPTIONAL.items() if place in parameters}
    return {**found, "norm_out": decoder.norm.weight.detach()}


def fault_of(model: Any) -> str:
    """Why the tail of ``model`` cannot be steered; empty if it can."""
    decoder, head = model.language_model.model, model.language_model.lm_head
    layer = decoder.layers[-1]
    linears = (layer.self_attn.qkv_proj, layer.self_attn.o_proj, layer.mlp.gate_up_proj, layer.mlp.down_proj, head)
    kinds = {type(module.quant_method).__name__ for module in linears}
    quantised = sorted(kinds - {"UnquantizedLinearMethod", "UnquantizedEmbeddingMethod"})
    if quantised:
        return f"its last layer or head is quantised ({', '.join(quantised)})"
    biases = ("self_attn.o_proj.bias", "mlp.gate_up_proj.bias", "mlp.down_proj.bias")
    known = {*_LAYER.values(), *_OPTIONAL.values(), "self_attn.k_norm.weight"}
    unknown = [name for name, _ in layer.named_parameters() if name not in known and name not in biases]
    unknown += [name for name in biases if name in dict(layer.named_parameters())]
    if unknown:
        return f"its last layer has parameters that the tail does not know: {', '.join(unknown)}"
    if getattr(head, "bias", None) is not None:
        return "its head has a bias"
    processor = model.language_model.logits_processor
    if processor.scale != 1.0 or processor.soft_cap is not None:
        return "its logits are scaled or capped after the head"
    return ""


class PagedTail(VocabularyHead):
    """The tail of a model in vLLM, from the last layer's input on. Rows are requests, one query each.

    Attributes:
        heads, kv_heads, head_dim, scaling: The attention's.
    """

    def __init__(self, model: Any) -> None:
        """Raises TypeError where the tail is of another kind."""
        fault = fault_of(model)
        if fault:
            raise TypeError(f"V-Reason cannot steer this model in vLLM: {fault}")
        layer, language = model.language_model.model.layers[-1], model.language_model
        attention = layer.self_attn
        self.weights: dict[str, Tensor] = model.tail_weights or weights_of(model)
        self.heads, self.kv_heads, self.head_dim = attention.num_heads, attention.num_kv_heads, attention.head_dim
        self.scaling, self.eps = attention.scaling, layer.input_layernorm.variance_epsilon
        self._rotary = attention.rotary_emb
        rows = language.lm_head.weight.detach()[: language.logits_processor.org_vocab_size]
        head = nn.Linear(rows.shape[1], rows.shape[0], bias=False, device="meta")
        head.weight = nn.Parameter(rows, requires_grad=False)
        super().__init__(head)

    def query(self, residual: Tensor, positions: Tensor) -> Tensor:
        """(rows, heads, 1, head_dim), after rotation, from (rows, hidden_size) and (3, rows)."""
        weights, size = self.weights, self.heads * self.head_dim
        bias = weights.get("qkv_bias")
        q = F.linear(self._norm(residual, "norm_in"), weights["qkv"][:size], None if bias is None else bias[:size])
        if "q_norm" in weights:
            q = self._norm(q.view(len(q), self.heads, self.head_dim), "q_norm").flatten(1)
        rotated: Tensor = self._rotary.forward_native(positions, q, q.clone())[0]
        return rotated.view(len(q), self.heads, 1, self.head_dim)

    def hidden(self, residual: Tensor, output: Tensor) -> Tensor:
        """(rows, hidden_size), the final norm's output, from A, (rows, heads * head_dim)."""
        x = residual + F.linear(output, self.weights["o"])
        gate, up = F.linear(self._norm(x, "norm_post"), self.weights["gate_up"]).chunk(2, dim=-1)
        x = x + F.linear(F.silu(gate) * up, self.weights["down"])
        return self._norm(x, "norm_out")

    def _norm(self, x: Tensor, name: str) -> Tensor:
        y = x.to(torch.promote_types(x.dtype, torch.float32))
        y = y * torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + self.eps)
        return y.to(x.dtype) * self.weights[name]
