"""VSI-Bench in two columns: multiple choice by accuracy, numbers by mean relative accuracy."""

from datasets import Dataset

from lmms_eval_vreason.prompts.split import Split
from lmms_eval_vreason.protocol.answers import format_number
from lmms_eval_vreason.protocol.benchmark import Benchmark, Doc, Question, lettered, parse_answer, with_options
from lmms_eval_vreason.protocol.stock import stock_utils

_LONGEST_IN_WORDS = 6  # "three hundred and twenty-one metres" is a number, a sentence with "one" in it is not


def multiple_choice(dataset: Dataset) -> Dataset:
    """The documents that are scored by accuracy."""
    kinds = stock_utils("vsibench").MCA_QUESTION_TYPES
    return dataset.filter(lambda doc: doc["question_type"] in kinds)


def numeric(dataset: Dataset) -> Dataset:
    """The documents that are scored by mean relative accuracy."""
    kinds = stock_utils("vsibench").NA_QUESTION_TYPES
    return dataset.filter(lambda doc: doc["question_type"] in kinds)


def question(doc: Doc) -> Question:
    video = f"{doc['dataset']}/{doc['scene_name']}"
    if doc["question_type"] in stock_utils("vsibench").NA_QUESTION_TYPES:
        return Question(doc["question"].strip(), "number", video)
    options = lettered(doc["options"])
    return Question(with_options(doc["question"], options), "choice", video, options)


def parse(response: Split, question: Question) -> str | None:
    """The bare answer to a numeric question, whose number may be in words."""
    answer = parse_answer(response, question)
    if answer is None:
        words = response.answer
        if not any(map(str.isdigit, words)) and len(words.split()) <= _LONGEST_IN_WORDS:
            number = stock_utils("vsibench").extract_number(words)
            return None if number is None else format_number(number)
    return answer


def score(doc: Doc, answer: str) -> float:
    scored = stock_utils("vsibench").vsibench_process_results(dict(doc), [answer])["vsibench_overall"]
    return float(scored["accuracy"] if "accuracy" in scored else scored["MRA:.5:.95:.05"])


_ACCURACY = Benchmark("vsibench_acc", question, score)
_MRA = Benchmark("vsibench_mra", question, score, parse=parse)
acc_to_text, acc_to_text_direct = _ACCURACY.doc_to_text, _ACCURACY.doc_to_text_direct
acc_results, acc_results_direct = _ACCURACY.process_results, _ACCURACY.process_results_direct
mra_to_text, mra_to_text_direct = _MRA.doc_to_text, _MRA.doc_to_text_direct
mra_results, mra_results_direct = _MRA.process_results, _MRA.process_results_direct
