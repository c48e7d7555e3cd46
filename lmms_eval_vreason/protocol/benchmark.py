"""What the six benchmarks share: a document becomes a prompt, and a response becomes figures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lmms_eval_vreason.prompts.split import Split, split
from lmms_eval_vreason.protocol.answers import format_number, parse_choice, parse_number, parse_open, parse_yes_no
from lmms_eval_vreason.protocol.prompt_templates import Template, cot_template, direct_template

Doc = Mapping[str, Any]
Figures = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Question:
    """One document as the protocol sees it.

    Attributes:
        text: question and options, as they stand in the prompt.
        kind: answer type, a key of the template's sentences.
        video: what groups questions on one video.
        options: key → text where the answer is one of them.
    """

    text: str
    kind: str
    video: str
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark, or one of its parts with documents of their own form.

    Attributes:
        name: the column that its tasks belong to.
        question: document → ``Question``.
        score: document and bare answer → score in [0, 1] by the stock task's rule. It never meets a missing answer.
        parse: response and question → bare answer as text, or None.
        pooled: whether the benchmark's tasks are pooled by questions instead of counting the same each.
    """

    name: str
    question: Callable[[Doc], Question]
    score: Callable[[Doc, str], float]
    parse: Callable[[Split, Question], str | None] | None = None
    pooled: bool = False

    def doc_to_text(self, doc: Doc, lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
        """The chain-of-thought prompt of a document. No model's name changes it."""
        return self._prompt(doc, cot_template())

    def doc_to_text_direct(self, doc: Doc, lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
        """The direct prompt of a document."""
        return self._prompt(doc, direct_template())

    def process_results(self, doc: Doc, results: list[str]) -> Figures:
        """Figures of one raw response (lmms-eval's own stripping is switched off in the task files)."""
        return self._figures(doc, results[0], cot_template())

    def process_results_direct(self, doc: Doc, results: list[str]) -> Figures:
        """The same for the direct prompt."""
        return self._figures(doc, results[0], direct_template())

    def _prompt(self, doc: Doc, template: Template) -> str:
        question = self.question(doc)
        return template.render(question.text, question.kind)

    def _figures(self, doc: Doc, text: str, template: Template) -> Figures:
        question = self.question(doc)
        response = split(text)
        answer = (self.parse or parse_answer)(response, question)
        score = 0.0 if answer is None else float(self.score(doc, answer))
        shared = {"video": question.video, "benchmark": self.name, "pooled": self.pooled}
        return {
            "score": {"score": score, "answer": answer, "template": template.digest, **shared},
            "answer_found": {"score": float(answer is not None), **shared},
            "cut": {"score": float(response.cut), **shared},
            "output_tokens": {"text": text, **shared},
            "thinking_tokens": {"text": response.thinking, **shared},
        }


def parse_answer(response: Split, question: Question) -> str | None:
    """The bare answer by the question's type; a number in plain decimal digits."""
    if question.kind == "number":
        number = parse_number(response)
        return None if number is None else format_number(number)
    if question.kind == "yes_no":
        return parse_yes_no(response)
    if question.kind == "open":
        return parse_open(response)
    return parse_choice(response, question.options)


def lettered(options: list[str]) -> dict[str, str]:
    """Letter → text; a letter that already leads an option (``A. circle``) is taken off its text."""
    texts = {chr(ord("A") + index): option for index, option in enumerate(options)}
    if all(text.startswith((f"{letter}.", f"{letter})", f"({letter})")) for letter, text in texts.items()):
        return {letter: text.removeprefix("(")[2:].strip() for letter, text in texts.items()}
    return texts


def with_options(question: str, options: Mapping[str, str]) -> str:
    """Question and one line an option: ``A. circle``."""
    return "\n".join([question.strip(), *(f"{key}. {text}" for key, text in options.items())])
