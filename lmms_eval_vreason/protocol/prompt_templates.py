"""Prompt templates: YAML files of one ``prompt`` and one sentence an answer type, known by their digest."""

import hashlib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

PROTOCOL_VERSION = 1.0
TEMPLATE_VARIABLE = "LMMS_EVAL_VREASON_TEMPLATE"
ANSWER_TYPES = ("choice", "label", "number", "yes_no", "open")


@dataclass(frozen=True)
class Template:
    """A prompt template.

    Attributes:
        name: the file's stem.
        prompt: text with the fields ``{question}`` (with its options) and, if wanted, ``{answer_type}``.
        answer_type: one sentence for each of ``ANSWER_TYPES``.
        digest: first 12 hex digits of the SHA-256 of everything above but the name.
    """

    name: str
    prompt: str
    answer_type: dict[str, str]
    digest: str

    def render(self, question: str, kind: str) -> str:
        """The prompt of one question whose answer is of ``kind``."""
        return self.prompt.format(question=question, answer_type=self.answer_type[kind])


def cot_template() -> Template:
    """The template of the group ``vreason``: the file that ``$LMMS_EVAL_VREASON_TEMPLATE`` names, or this package's."""
    return load_template(os.environ.get(TEMPLATE_VARIABLE) or _packaged("cot"))


def direct_template() -> Template:
    """The template of the group ``vreason_direct``."""
    return load_template(_packaged("direct"))


def packaged_digests() -> set[str]:
    """The digests of this package's own templates, whatever the environment names."""
    return {load_template(_packaged(name)).digest for name in ("cot", "direct")}


@cache
def load_template(path: str | Path) -> Template:
    """Reads and checks a template file.

    Raises:
        ValueError: the file is not such a mapping, a field is unknown or missing, or an answer type has no sentence.
        OSError: the file cannot be read.
    """
    path = Path(path).expanduser()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"template {path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict) or set(content) != {"prompt", "answer_type"}:
        raise ValueError(f"template {path}: expected exactly the keys 'prompt' and 'answer_type'")
    prompt, sentences = content["prompt"], content["answer_type"]
    if not isinstance(prompt, str) or not isinstance(sentences, dict):
        raise ValueError(f"template {path}: 'prompt' must be text and 'answer_type' a mapping")
    if missing := [kind for kind in ANSWER_TYPES if not isinstance(sentences.get(kind), str)]:
        raise ValueError(f"template {path}: no sentence for the answer type {', '.join(missing)}")
    try:
        empty = prompt.format(question="", answer_type="")
    except (ValueError, LookupError, AttributeError) as error:
        mend = "the fields are {question} and {answer_type}, and a literal brace is written twice"
        raise ValueError(f"template {path}: unknown field or brace ({error}); {mend}") from error
    if prompt.format(question="?", answer_type="") == empty:
        raise ValueError(f"template {path}: the prompt lacks the field {{question}}")
    sentences = {kind: sentences[kind] for kind in ANSWER_TYPES}
    digest = hashlib.sha256("\0".join([prompt, *sentences.values()]).encode()).hexdigest()[:12]
    return Template(path.stem, prompt, sentences, digest)


def __getattr__(name: str) -> dict[str, object]:
    """``cot_metadata`` and ``direct_metadata``: what a task file records of its template, read when the file is.

    Raises:
        SystemExit: The template is broken. lmms-eval would hide any Exception behind "Failed to import function"
            and exit with code 0.
    """
    makers = {"cot_metadata": cot_template, "direct_metadata": direct_template}
    if name not in makers:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        template = makers[name]()
    except (OSError, ValueError) as error:
        raise SystemExit(f"vreason tasks: {error}") from error
    return {"version": PROTOCOL_VERSION, "template": template.name, "template_digest": template.digest}


def _packaged(name: str) -> Path:
    return Path(__file__).parent / "templates" / f"{name}.yaml"
