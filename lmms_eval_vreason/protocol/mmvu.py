"""MMVU, validation split, its multiple-choice questions only: the open ones need a judge."""

from datasets import Dataset

from lmms_eval_vreason.protocol.benchmark import Benchmark, Doc, Question, with_options


def multiple_choice(dataset: Dataset) -> Dataset:
    """The documents of the paper's subset."""
    return dataset.filter(lambda doc: doc["question_type"] == "multiple-choice")


def question(doc: Doc) -> Question:
    options = {letter: text for letter, text in doc["choices"].items() if text}
    return Question(with_options(doc["question"], options), "choice", doc["video_path"], options)


def score(doc: Doc, answer: str) -> float:
    # The stock rule on a bare letter, less its search for option texts in the answer: a lone "B" would match any "b".
    return float(answer == doc["answer"].strip().upper())


_BENCHMARK = Benchmark("mmvu", question, score)
doc_to_text, doc_to_text_direct = _BENCHMARK.doc_to_text, _BENCHMARK.doc_to_text_direct
process_results, process_results_direct = _BENCHMARK.process_results, _BENCHMARK.process_results_direct
