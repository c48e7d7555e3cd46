"""TempCompass: its three parts that a rule can score, pooled. Captioning needs a judge and stays out."""

import re
from functools import partial

from lmms_eval_vreason.protocol.benchmark import Benchmark, Doc, Question
from lmms_eval_vreason.protocol.stock import stock_utils

_OPTION = re.compile(r"^\s*(?:(?P<word>[A-Z][a-z]+)\s+)?(?P<key>[A-Z1-9])[.:)]\s*(?P<text>.+)$")


def question(doc: Doc) -> Question:
    """A multiple-choice or caption-matching document; both carry their options in the question's text."""
    found = list(filter(None, map(_OPTION.match, doc["question"].strip().splitlines()[1:])))
    options = {match["key"]: match["text"].strip() for match in found}
    kind = "label" if any(match["word"] for match in found) else "choice"
    return Question(doc["question"].strip(), kind, doc["video_id"], options)


def yes_no_question(doc: Doc) -> Question:
    return Question(doc["question"].strip(), "yes_no", doc["video_id"])


def doc_to_visual(doc: Doc) -> list[str]:
    """The stock paths; not named in the task file, since the stock module needs ``HF_HOME`` at import."""
    return list(stock_utils("tempcompass").tempcompass_doc_to_visual(doc))


def score(part: str, doc: Doc, answer: str) -> float:
    """By the stock scorer of a part."""
    scorer = getattr(stock_utils("tempcompass"), f"tempcompass_process_results_{part}")
    return float(scorer(doc, [answer])["avg_accuracy"]["rating"])


def caption_score(doc: Doc, answer: str) -> float:
    # The rule alone: the stock scorer calls a judge where it says "fail". It knows every option by its whole label.
    text = doc["question"].strip()
    matches = filter(None, map(_OPTION.match, text.splitlines()[1:]))
    label = next(" ".join(filter(None, (m["word"], m["key"]))) for m in matches if m["key"] == answer)
    return float(stock_utils("tempcompass").eval_rule(label, text, doc["answer"]) == 1)


_CHOICE = Benchmark("tempcompass", question, partial(score, "multi_choice"), pooled=True)
_YES_NO = Benchmark("tempcompass", yes_no_question, partial(score, "yes_no"), pooled=True)
_CAPTION = Benchmark("tempcompass", question, caption_score, pooled=True)
choice_to_text, choice_to_text_direct = _CHOICE.doc_to_text, _CHOICE.doc_to_text_direct
choice_results, choice_results_direct = _CHOICE.process_results, _CHOICE.process_results_direct
yes_no_to_text, yes_no_to_text_direct = _YES_NO.doc_to_text, _YES_NO.doc_to_text_direct
yes_no_results, yes_no_results_direct = _YES_NO.process_results, _YES_NO.process_results_direct
caption_to_text, caption_to_text_direct = _CAPTION.doc_to_text, _CAPTION.doc_to_text_direct
caption_results, caption_results_direct = _CAPTION.process_results, _CAPTION.process_results_direct
