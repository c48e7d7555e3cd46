"""One request's budgets, followed token by token. Imports no vLLM: the front end reads the outcome from it as well."""

from transformers import PreTrainedTokenizerBase

from lmms_eval_vreason.prompts.budgets import Budgets, Outcome

# Where a request's budgets are in ``SamplingParams.extra_args``.
BUDGETS_KEY = "vreason_budgets"


class Followed:
    """:class:`~lmms_eval_vreason.prompts.budgets.Budgets` of one request.

    Attributes:
        done: After how many tokens the budgets end the text; None as long as they do not.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, opened: bool, max_thinking_tokens: int, max_answer_tokens: int
    ) -> None:
        """Args: as of :class:`~lmms_eval_vreason.prompts.budgets.Budgets`, for one sample."""
        self._budgets = Budgets(
            tokenizer, [opened], 0, max_thinking_tokens=max_thinking_tokens, max_answer_tokens=max_answer_tokens
        )
        self._seen = 0
        self.done: int | None = None

    @property
    def max_new_tokens(self) -> int:
        """The most tokens, the one that is forced to end the text left out."""
        return self._budgets.max_new_tokens

    @property
    def forced_token(self) -> int | None:
        """The token that is forced now; None where the request chooses."""
        return self._budgets.forced_token(0)

    def follow(self, output: list[int]) -> None:
        """Takes note of those generated tokens, ``output``, that are new."""
        while self._seen < len(output) and self.done is None:
            self._seen += 1
            start = max(0, self._seen - self._budgets.looks_back)
            if self._budgets.note(0, output[start : self._seen], self._seen):
                self.done = self._seen

    def outcome(self, text: str, tokens: int) -> Outcome:
        """What became of the request, which generated ``text`` in so many tokens."""
        return self._budgets.outcome(0, text, tokens)
