"""Video-MME, without subtitles."""

from lmms_eval_vreason.protocol.benchmark import Benchmark, Doc, Question, lettered, with_options
from lmms_eval_vreason.protocol.stock import stock_utils


def question(doc: Doc) -> Question:
    options = lettered(doc["options"])
    return Question(with_options(doc["question"], options), "choice", doc["videoID"], options)


def score(doc: Doc, answer: str) -> float:
    scored = stock_utils("videomme").videomme_process_results(doc, [answer])
    return float(scored["videomme_perception_score"]["score"])


_BENCHMARK = Benchmark("videomme", question, score)
doc_to_text, doc_to_text_direct = _BENCHMARK.doc_to_text, _BENCHMARK.doc_to_text_direct
process_results, process_results_direct = _BENCHMARK.process_results, _BENCHMARK.process_results_direct
