"""The reasoning instruction, and prompts that bring their own."""

from lmms_eval_vreason.prompts.instruction import REASONING_PROMPT, add_reasoning_prompt


def test_a_task_that_asks_for_thinking_itself_is_left_alone() -> None:
    own = "What moves? Think in <think></think> and answer in <answer></answer>."
    assert add_reasoning_prompt(own) == own
    assert add_reasoning_prompt("What moves?\n") == f"What moves?\n{REASONING_PROMPT}"
    assert add_reasoning_prompt("What moves?", "Reason.") == "What moves?\nReason."
    for half in ("Think in <think></think>.", "Answer in <answer></answer>."):
        assert add_reasoning_prompt(half, "Reason.") == f"{half}\nReason."
