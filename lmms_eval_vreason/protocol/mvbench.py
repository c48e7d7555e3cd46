"""MVBench: twenty subtasks that count the same."""

from lmms_eval_vreason.protocol.benchmark import Benchmark, Doc, Question, lettered, with_options
from lmms_eval_vreason.protocol.stock import stock_utils


def question(doc: Doc) -> Question:
    options = lettered(doc["candidates"])
    return Question(with_options(doc["question"], options), "choice", doc["video"], options)


def score(doc: Doc, answer: str) -> float:
    return float(stock_utils("mvbench").mvbench_process_results(doc, [answer])["mvbench_accuracy"]["score"])


_BENCHMARK = Benchmark("mvbench", question, score)
doc_to_text, doc_to_text_direct = _BENCHMARK.doc_to_text, _BENCHMARK.doc_to_text_direct
process_results, process_results_direct = _BENCHMARK.process_results, _BENCHMARK.process_results_direct
