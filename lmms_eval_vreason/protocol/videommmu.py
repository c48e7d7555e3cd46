"""VideoMMMU: perception, comprehension and adaptation, which count the same."""

from lmms_eval_vreason.protocol.benchmark import Benchmark, Doc, Question, lettered
from lmms_eval_vreason.protocol.stock import stock_config, stock_utils


def _question(doc: Doc, stock_text: str) -> Question:
    # The stock text says where in the video the question's own image is; without that it cannot be answered.
    options = lettered(doc["options"] or [])
    return Question(stock_text.strip(), "choice" if options else "open", doc["id"], options)


def question(doc: Doc) -> Question:
    """A perception or comprehension document."""
    stock_text = stock_utils("videommmu").videommmu_doc_to_text_perception_comprehension
    return _question(doc, stock_text(doc, _stock_prompts()))


def adaptation_question(doc: Doc) -> Question:
    return _question(doc, stock_utils("videommmu").videommmu_doc_to_text_adaptation(doc, _stock_prompts()))


def doc_to_visual(doc: Doc) -> list[str]:
    """The stock paths; not named in the task file, since the stock module needs ``HF_HOME`` at import."""
    return list(stock_utils("videommmu").videommmu_doc_to_visual(doc))


def score(doc: Doc, answer: str) -> float:
    stock = stock_utils("videommmu")
    if doc["options"]:
        return float(stock.eval_multi_choice(doc["answer"], answer))
    return float(stock.eval_open(doc["answer"], stock.parse_open_response(answer)))


def _stock_prompts() -> dict[str, str]:
    return dict(stock_config("videommmu")["lmms_eval_specific_kwargs"]["default"])


_LECTURE = Benchmark("videommmu", question, score)
_ADAPTATION = Benchmark("videommmu", adaptation_question, score)
doc_to_text, doc_to_text_direct = _LECTURE.doc_to_text, _LECTURE.doc_to_text_direct
process_results, process_results_direct = _LECTURE.process_results, _LECTURE.process_results_direct
adaptation_to_text, adaptation_to_text_direct = _ADAPTATION.doc_to_text, _ADAPTATION.doc_to_text_direct
