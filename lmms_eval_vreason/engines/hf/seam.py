"""The last layer's attention, seen through transformers' own seam, and the tail that follows it, as a function.

Within :meth:`Seam.attached` the last decoder layer's attention finds this module's function (transformers'
``AttentionInterface``) under the name that a copy of its config gives it; the model's config stays, and with it the
masks. There q, K, V and the output A of the one query are at hand in every family alike. From A on nothing needs the
cache: the layer can be called again with the same input, no cache and an attention that answers with a given A.
Residuals, norms and MLP are the layer's own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, PreTrainedModel

from lmms_eval_vreason.engines.due_step import Gradient, by_kv_head, gradient_at, linearised, probabilities
from lmms_eval_vreason.engines.hf.upstream import own_attention, renamed_attention
from lmms_eval_vreason.families.family import Tail

NAME = "vreason"
# Arguments of an attention function under which A is not p V.
_REFUSED = ("s_aux", "position_bias", "softcap")
# The last attention layers of the models whose tail was found to be their own.
_CHECKED: WeakSet[nn.Module] = WeakSet()


class Reached(NamedTuple):
    """The last layer's attention of one query, as :func:`probabilities` takes it.

    Attributes:
        output: (batch, 1, heads, head_dim), A as the model computed it.
        query, key, mask, scaling: What it computed A from.
        values: (batch, kv_heads, tokens, head_dim), the cache's own tensor.
    """

    output: Tensor
    query: Tensor
    key: Tensor
    mask: Tensor | None
    scaling: float
    values: Tensor

    def attention(self) -> tuple[Tensor, Tensor]:
        """Its probabilities p, (batch, kv_heads, query heads a KV head, tokens), and A, (…, head_dim).

        Both in float32 at least: in half precision A would have lost what an update adds to it.
        """
        p = probabilities(self.query, self.key, self.mask, self.scaling)
        exact = by_kv_head(self.output.detach(), p)
        return p, exact if exact.dtype == p.dtype else p @ self.values.to(p.dtype)


def _attention(module: Any, *states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    seam: Seam = module.vreason
    return seam.attend(module, *states, **kwargs)


class Seam:
    """The tail of one model from its last attention's output A to the logits."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Raises TypeError for a model that cannot be steered."""
        self.model, self.tail = model, Tail(model)
        self.attention: Any = self.tail.layer.self_attn
        self.config = self.attention.config
        AttentionInterface.register(NAME, _attention)
        self._renamed = renamed_attention(self.config, NAME)
        self._own = own_attention(self.attention)
        self._given: Tensor | None = None
        self._reached: Reached | None = None
        self._noted: list[Tensor] = []
        self._call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    @property
    def checked(self) -> bool:
        """Whether a due step of this model has run as far as the comparison with its own logits."""
        return self.attention in _CHECKED

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Within it the attention goes through here. Afterwards the model is as it was, and nothing is kept."""
        layer, attention = self.tail.layer, self.attention
        handles = [
            layer.register_forward_pre_hook(self._note_call, with_kwargs=True, prepend=True),
            self.tail.norm.register_forward_hook(self._note_hidden),
        ]
        attention.config, attention.vreason = self._renamed, self
        try:
            yield
        finally:
            attention.config, self._given, self._reached, self._noted = self.config, None, None, []
            self._call = ((), {})
            del attention.vreason
            for handle in handles:
                handle.remove()

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """An attention function as transformers calls it."""
        if self._given is not None:
            return self._given, None
        refused = [name for name in _REFUSED if kwargs.get(name) is not None]
        if refused:
            raise TypeError(f"V-Reason cannot steer attention with {', '.join(refused)}")
        output, weights = self._own(module, query, key, value, mask, **kwargs)
        if torch.is_grad_enabled():
            output = output.detach().requires_grad_()
        self._reached = Reached(output, query, key, mask, kwargs["scaling"], value)
        return output, weights

    def forward(self, inputs: dict[str, Any]) -> tuple[Reached, Tensor, Gradient]:
        """One token's forward by the model itself.

        Returns:
            What was reached; the logits (batch, vocabulary); the gradient at A from that at the final norm's output.
        """
        if torch.compiler.is_compiling():
            # What follows A in this call is dropped from the graph, which nobody reads.
            self.model(**inputs, return_dict=True)
            reached = self._taken()
            hidden, to_output = linearised(self.hidden, reached.output)
            return reached, self.tail.logits(hidden), to_output
        # Weights are frozen: autograd records nothing but what follows A, which requires a gradient.
        with torch.enable_grad():
            logits = self.model(**inputs, return_dict=True).logits[:, -1].detach()
        reached, (hidden,) = self._taken(), self._noted
        self._noted = []
        if not self.checked:
            self._check(reached, logits)
            _CHECKED.add(self.attention)
        return reached, logits, lambda gradient: gradient_at(hidden, reached.output, gradient[:, None])

    def hidden(self, output: Tensor) -> Tensor:
        """(batch, hidden_size), the final norm's output, from A: the layer's own forward with A for its attention."""
        self._given, (args, kwargs) = output, self._call
        outputs = self.tail.layer(*args, **kwargs)
        self._given = None
        hidden: Tensor = self.tail.norm(outputs[0] if isinstance(outputs, tuple) else outputs)
        return hidden[:, -1]

    def _taken(self) -> Reached:
        reached, self._reached = self._reached, None
        if reached is None:
            raise RuntimeError("the model's last decoder layer was not called: report the model")
        return reached

    def _note_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._given is None and self._reached is None:
            args = tuple(None if isinstance(value, Cache) else value for value in args)
            self._call = args, {name: None if isinstance(value, Cache) else value for name, value in kwargs.items()}

    def _note_hidden(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        # What a graph notes it has to compute, and this one would drop it.
        if self._reached is not None and not torch.compiler.is_compiling():
            self._noted = [output]

    def _check(self, reached: Reached, logits: Tensor) -> None:
        """Raises RuntimeError unless A is p V and the tail gives the model's own logits."""
        p, _ = reached.attention()
        own = by_kv_head(reached.output.detach(), p).to(p.dtype)
        by_p = p @ reached.values.to(p.dtype)
        again = self.tail.logits(self.hidden(reached.output.detach())).to(logits)
        # transformers' eager attention takes its softmax in float32 whatever the model's dtype.
        tolerance = max(100 * torch.finfo(torch.float32).eps, 8 * torch.finfo(self.model.dtype).eps)
        for what, ours, theirs in (("its attention's output", by_p, own), ("its logits", again, logits)):
            difference = (ours - theirs).abs().max().item()
            scale = theirs.abs().max().item()
            # A model whose logits are not finite is decoded as it is.
            if scale < torch.inf and difference > tolerance * scale:
                raise RuntimeError(
                    f"V-Reason cannot steer this {self.model.config.model_type} model: computed from the cache, {what} "
                    f"differ by {difference:.3g} from the model's own. Set policy=off, and report the model"
                )
