"""Answer extraction: every form of a right answer is found, a chain that merely mentions one is not an answer."""

import string

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from lmms_eval_vreason.prompts.split import split
from lmms_eval_vreason.protocol.answers import format_number, parse_choice, parse_number, parse_open, parse_yes_no

UNHURRIED = settings(deadline=None)  # a busy machine may stop in the middle of an example
OPTIONS = {"A": "circle", "B": "square", "C": "triangle", "D": "star"}
RIGHT = [
    "B",
    "b",
    "B.",
    "B. square",
    "B) square",
    "B: square",
    "B square",
    "(B)",
    "(B) square",
    "[B]",
    "**B**",
    "Option B",
    "square",
    "Square.",
    "Ｂ",
    "$\\boxed{\\text{B}}$",
    "Answer: B",
    "**Answer:** B",
    "The answer is (B).",
    "Answer: square",
    "答案：B",
]
# Each names the right letter B or its text, and none gives it as the answer.
WRONG_CHAINS = [
    "B looks right at first, but the shape is round. Answer: A",
    "B. I thought so at first. But it is round, so the answer is A.",
    "Option B says square, and square has corners. It is round, so I cannot say",
    "A is out. B is out. C is out",
    "B. square is what it looks like, but no",
    "The answer is not B",
    "Is it B? No.",
    "It is A or B",
    "A, B",
    "(A) (B)",
    "<think>The answer is B</think><answer>A</answer>",
    "<think><answer>B</answer></think><answer>A</answer>",
    "<think>It must be B",
    "<answer>A or B</answer>",
    "<answer>not B</answer>",
]
LETTERS = st.sampled_from("ABCD")
# Words of a chain: letters of options among them, but nothing that states an answer.
CHAIN = st.lists(
    st.one_of(
        st.sampled_from(["A", "B", "C", "D", "(B)", "B.", "Option", "so", "because", "wrong", "square", "12", "yes"]),
        st.text(string.ascii_lowercase, min_size=2, max_size=8),
    ),
    min_size=14,
    max_size=40,
).map(" ".join)


def choice(text: str) -> str | None:
    return parse_choice(split(text), OPTIONS)


@pytest.mark.parametrize("answer", RIGHT)
@pytest.mark.parametrize(
    "clothes",
    [
        "{}",
        "<answer>{}</answer>",
        "<answer>\n{}\n</answer>\n",
        "<think>A, or C?</think>\n{}",
        "<think>A, or C?</think><answer>{}</answer>",
        "<think>A, or C? <answer>{}</answer>",
        "A, or C?</think><answer>{}</answer>",
        "<think>A</think><answer></answer><answer>{}</answer>",
        "<Think>A</Think><Answer>{}</Answer>",
        "<answer>{}",
        "The ball is not round.\nIt has corners, unlike A.\n{}",
    ],
)
def test_right_choice_in_every_form(clothes: str, answer: str) -> None:
    assert choice(clothes.format(answer)) == "B"


@pytest.mark.parametrize("text", WRONG_CHAINS)
def test_wrong_chain_does_not_answer_b(text: str) -> None:
    assert choice(text) != "B"


@pytest.mark.parametrize("text", ["", " ", "E", "<answer>E</answer>", "<answer></answer>", "I", "A square moves"])
def test_no_choice(text: str) -> None:
    assert choice(text) is None


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("B since it has corners", "B"),
        ("b. since it has corners", "B"),
        ("(b) since it has corners", "B"),
        ("a square has corners", None),  # the article
        ("B. A", None),
        ("B), A", None),
    ],
)
def test_a_marked_answer_may_go_on_after_one_letter(text: str, key: str | None) -> None:
    assert choice(f"<answer>{text}</answer>") == key


@pytest.mark.parametrize("text", ["blue square", "Blue; square!", "B. blue\nsquare", "B: 'blue square'"])
def test_an_option_s_text_is_known_by_its_words(text: str) -> None:
    assert parse_choice(split(text), {"A": "red, round", "B": "blue, square"}) == "B"


@UNHURRIED
@given(chain=CHAIN)
@example("B " * 14)
@example("B square" + " A" * 12)
def test_a_chain_alone_is_no_choice(chain: str) -> None:
    assert choice(chain) is None
    assert choice(f"<think>{chain}") is None


@UNHURRIED
@given(chain=CHAIN, letter=LETTERS)
def test_a_chain_does_not_change_the_answer(chain: str, letter: str) -> None:
    for text in (
        f"<think>{chain}</think><answer>{letter}</answer>",
        f"<think>{chain}</think>\n{letter}",
        f"{chain}\nAnswer: {letter}",
        f"{chain}\n{letter}",
        f"{chain} <answer>{letter}</answer> {chain}",
    ):
        assert choice(text) == letter


@UNHURRIED
@given(text=st.text(max_size=200))
def test_any_text_is_taken_apart(text: str) -> None:
    response = split(text)
    for answer, valid in (
        (parse_choice(response, OPTIONS), set(OPTIONS)),
        (parse_yes_no(response), {"yes", "no"}),
    ):
        assert answer is None or answer in valid
    number = parse_number(response)
    assert number is None or abs(number) < float("inf")
    assert "<think>" not in response.thinking


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("4", 4),
        ("4.", 4),
        ("-4", -4),
        ("−4.5", -4.5),
        ("4.5 m", 4.5),
        ("4.5m", 4.5),
        ("about 4 metres", 4),
        ("1,200", 1200),
        ("$1,234,567.5", 1234567.5),
        ("4,5", 4.5),
        ("1/2", 0.5),
        ("-3/4", -0.75),
        ("about 1/2 m", 0.5),
        ("3 1/2", 3.5),
        ("10%", 10),
        ("1.5e3", 1500),
        (".5", 0.5),
        ("٤", 4),
        ("４２", 42),
        ("\\boxed{4}", 4),
        ("x = 4", 4),
        ("**4**", 4),
        ("There are 2 left and 3 right.\nAnswer: 5 chairs", 5),
        (f"Answer: 4, {'so ' * 12}", 4),
    ],
)
@pytest.mark.parametrize("clothes", ["{}", "<answer>{}</answer>", "<think>7 or 8</think>\n{}", "I count 7, 8.\n{}"])
def test_right_number_in_every_form(clothes: str, text: str, number: float) -> None:
    assert parse_number(split(clothes.format(text))) == pytest.approx(number)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "four",
        "B2",
        "1/0",
        "1e999",
        "3 to 4",
        "There are 3 on the left and 2 on the right",
        "<think>4",
        "so " * 12 + "4",
    ],
)
def test_no_number(text: str) -> None:
    assert parse_number(split(text)) is None


@UNHURRIED
@given(number=st.integers(-(10**9), 10**9), unit=st.sampled_from(["", " m", "cm", " square metres", " 米"]))
def test_thousands_separators_and_units(number: int, unit: str) -> None:
    assert parse_number(split(f"<answer>{number:,}{unit}</answer>")) == number


@pytest.mark.parametrize(
    ("number", "text"),
    [(4, "4"), (400, "400"), (-0.25, "-0.25"), (0, "0"), (1 / 3, "0.3333333333"), (1e15, "1" + "0" * 15)],
)
def test_a_number_returns_in_plain_digits(number: float, text: str) -> None:
    assert format_number(number) == text


@UNHURRIED
@given(above=st.integers(-999, 999), below=st.integers(1, 999))
def test_fractions(above: int, below: int) -> None:
    assert parse_number(split(f"{above}/{below}")) == pytest.approx(above / below)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("yes", "yes"),
        ("No.", "no"),
        ("YES, it does.", "yes"),
        ("**No**", "no"),
        ("Yes at first.\nBut then it turns.\nno", "no"),
        ("Answer: No", "no"),
        ("<think>yes</think>no", "no"),
        ("<answer>Yes</answer>", "yes"),
        ("Not sure", None),
        ("Nothing moves", None),
        ("yes or no", None),
        ("yes/no", None),
        ("<answer>maybe</answer>", None),
        ("", None),
    ],
)
def test_yes_no(text: str, answer: str | None) -> None:
    assert parse_yes_no(split(text)) == answer


@UNHURRIED
@given(answer=st.text(string.ascii_letters + " ", min_size=1, max_size=30))
def test_open_answers(answer: str) -> None:
    assume(answer.strip())
    assert parse_open(split(f"<think>no</think><answer>{answer}</answer>")) == answer.strip()


def test_open_answers_need_a_mark_or_one_short_line() -> None:
    assert parse_open(split("O(n²)")) == "O(n²)"
    assert parse_open(split("It grows.\nAnswer: O(n²)")) == "O(n²)"
    assert parse_open(split("It grows.\nO(n²)")) == "O(n²)"
    assert parse_open(split("It sorts first.\nThe answer is merge sort.")) == "merge sort."
    assert parse_open(split("on " * 12)) == ("on " * 12).strip()
    assert parse_open(split("on " * 13)) is None
