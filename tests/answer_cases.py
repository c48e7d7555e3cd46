"""Completions and how they are split: the table of docs/answers.md, which ``python tests/answer_cases.py`` writes."""

from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parents[1] / "docs" / "answers.md"
BEGIN, END = "<!-- cases: written by tests/answer_cases.py -->", "<!-- end of cases -->"


class Case(NamedTuple):
    """A completion and what the splitter makes of it.

    ``opened``: the prompt ended inside an open ``<think>``.
    """

    what: str
    text: str
    thinking: str
    answer: str
    tagged: bool = False
    cut: bool = False
    opened: bool = False


CASES = [
    # As asked.
    Case("as asked", "<think>a</think><answer>B</answer>", "a", "B", tagged=True),
    Case("with line breaks", "<think>\na\n</think>\n\n<answer>\nB\n</answer>\n", "a", "B", tagged=True),
    Case("as it returns to lmms-eval", "<think>\na\n</think>\nB", "a", "B"),
    Case("no answer tags", "<think>a</think>B", "a", "B"),
    Case("no thinking tags", "a <answer>B</answer>", "a", "B", tagged=True),
    Case("several answers, no thinking tags", "a <answer>B</answer> <answer>C</answer>", "a", "B", tagged=True),
    Case("an answer block alone", "<answer>B</answer>", "", "B", tagged=True),
    Case("no tags", "B. square", "", "B. square"),
    Case("nothing", "", "", ""),
    Case("blanks", " \n ", "", ""),
    Case("other scripts", "<think>三个圆</think><answer>三</answer>", "三个圆", "三", tagged=True),
    Case("lower case is longer than upper case", "<think>İİİ</think><answer>B</answer>", "İİİ", "B", tagged=True),
    # Other spellings of the tags.
    Case("upper case", "<THINK>a</THINK><ANSWER>B</ANSWER>", "a", "B", tagged=True),
    Case("mixed case", "<Think>a</think><answer>B</Answer>", "a", "B", tagged=True),
    Case("analysis, which lmms-eval strips too", "<analysis>a</analysis>B", "a", "B"),
    Case("analysis within thinking", "<think>a<analysis>b</analysis>c</think>B", "abc", "B"),
    Case("unclosed analysis", "<analysis>a", "a", "", cut=True),
    Case("a tag that others hide", "<th<think>ink>a</think>B", "a", "B"),
    Case("not a tag", "<think>1 < 2 <thinks></think><answer>x < y</answer>", "1 < 2 <thinks>", "x < y", tagged=True),
    # Empty blocks and several answers.
    Case("an empty block first", "<think>a</think><answer></answer><answer>B</answer>", "a", "B", tagged=True),
    Case("a blank block first", "<think>a</think><answer>\n</answer>\n<answer>B</answer>", "a", "B", tagged=True),
    Case("an empty block, then bare text", "<think>a</think><answer></answer>B", "a", "B"),
    Case("only an empty block", "<answer></answer>", "", ""),
    Case("thinking and an empty block", "<think>a</think><answer></answer>", "a", "", cut=True),
    Case("empty thinking", "<think></think><answer>B</answer>", "", "B", tagged=True),
    Case("two answers", "<think>a</think><answer>B</answer><answer>C</answer>", "a", "B", tagged=True),
    Case("nested answer tags", "<answer><answer>B</answer></answer>", "", "B", tagged=True),
    Case("an opener twice", "<think>a</think><answer>C <answer>B</answer>", "aC", "B", tagged=True),
    Case("text after the answer", "<think>a</think><answer>B</answer> since C", "a", "B", tagged=True),
    Case("thinking after the answer", "<answer>B</answer><think>or C</think>D", "", "B", tagged=True),
    Case("unclosed thinking after the answer", "<think>a</think><answer>B</answer><think>or", "a", "B", tagged=True),
    Case("thinking inside the answer", "<answer>B<think>or C</think></answer>", "", "B", tagged=True),
    Case("bare text, then thinking", "B<think>a</think>", "", "B"),
    Case("a closing answer tag alone", "<think>a</think>B</answer>", "a", "B"),
    # Several closing tags.
    Case("a closing tag alone", "a</think><answer>B</answer>", "a", "B", tagged=True),
    Case("the same, quotes an answer", "<answer>A</answer>?</think><answer>B</answer>", "A?", "B", tagged=True),
    Case("two closing tags", "<think>a</think>b</think>B", "ab", "B"),
    Case("two thoughts", "<think>1</think>2<think>3</think>B", "123", "B"),
    Case("nested thinking", "<think>a<think>b</think>c</think><answer>B</answer>", "abc", "B", tagged=True),
    Case("a closing tag after the answer", "<think>a</think><answer>B</answer></think>", "a", "B", tagged=True),
    Case("a closing tag after bare text", "<think>a</think>B</think>", "a", "B"),
    Case("forced to answer, closed again", "<think>a\n</think>\n<answer>B</think></answer>", "a", "B", tagged=True),
    # Answer tags within the thinking.
    Case("an answer in the thinking", "<think><answer>A</answer>?</think><answer>B</answer>", "A?", "B", tagged=True),
    Case("the instruction quoted", "<think>between <answer> and </answer></think>B", "between  and", "B"),
    Case("quoted, then cut", "<think>between <answer> and </answer>. So", "between  and . So", "", cut=True),
    Case("an answer in closed thinking only", "<think>a<answer>B</answer></think>", "aB", "", cut=True),
    Case("never closed, ends with the answer", "<think>a <answer>B</answer>\n", "a", "B", tagged=True),
    Case("the same after a quoted answer", "<think><answer>A</answer>? <answer>B</answer>", "A?", "B", tagged=True),
    Case("never closed, the answer neither", "<think>a <answer>B", "a B", "", cut=True),
    Case("an answer before unclosed thinking", "<answer>B</answer> <think>a", "", "B", tagged=True),
    # Texts that end too early.
    Case("cut in the thinking", "<think>a, so B", "a, so B", "", cut=True),
    Case("cut in a second thought", "<think>a</think>B<think>or", "aBor", "", cut=True),
    Case("only an opening tag", "<think>", "", "", cut=True),
    Case("only thinking", "<think>a</think>", "a", "", cut=True),
    Case("cut in the answer", "<think>a</think><answer>B", "a", "B", tagged=True, cut=True),
    Case("cut before the answer", "<think>a</think><answer>", "a", "", tagged=True, cut=True),
    Case("cut in a tag", "<think>a</think><answer>B</ans", "a", "B</ans", tagged=True, cut=True),
    # The prompt opened the thinking.
    Case("opened by the prompt", "a</think><answer>B</answer>", "a", "B", tagged=True, opened=True),
    Case("opened, bare answer", "a\n</think>\n\nB", "a", "B", opened=True),
    Case("opened twice", "<think>a</think>B", "a", "B", opened=True),
    Case("opened, cut", "a, so B", "a, so B", "", cut=True, opened=True),
    Case("opened, quotes an answer", "a <answer>A</answer> b</think>B", "a A b", "B", opened=True),
    Case("opened, quotes an answer, cut", "a <answer>A</answer> b", "a A b", "", cut=True, opened=True),
    Case("opened, ends with the answer", "a <answer>B</answer>", "a", "B", tagged=True, opened=True),
    Case("opened, only thinking", "a</think>", "a", "", cut=True, opened=True),
    Case("opened, nothing", "", "", "", cut=True, opened=True),
]  # fmt: skip


def table() -> str:
    """The cases as a Markdown table."""
    rows = ["| | completion | thinking | answer | tagged | cut |", "| --- | --- | --- | --- | --- | --- |"]
    for case in CASES:
        texts = " | ".join(f"`{text}`" if text else "" for text in map(_shown, (case.text, case.thinking, case.answer)))
        rows.append(f"| {case.what} | {texts} | {'yes' if case.tagged else ''} | {'yes' if case.cut else ''} |")
    return "\n".join(rows)


def written(text: str) -> str:
    """The page with the table in its place."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


def _shown(text: str) -> str:
    return text.replace("\n", "⏎")


if __name__ == "__main__":
    DOCS.write_text(written(DOCS.read_text(encoding="utf-8")), encoding="utf-8")
