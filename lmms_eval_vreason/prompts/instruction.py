"""The instruction that asks a model to reason before it answers."""

REASONING_PROMPT = (
    "Think about the question step by step, using what the video shows, and write your reasoning between <think> and "
    "</think>. Then write only the final answer, in exactly the form that the question asks for, between <answer> and "
    "</answer>."
)


def add_reasoning_prompt(text: str, reasoning_prompt: str | None = None) -> str:
    """The prompt with the reasoning instruction after it, unless it asks for thinking and answer in tags itself."""
    if "<think>" in text and "<answer>" in text:
        return text
    return f"{text.rstrip()}\n{REASONING_PROMPT if reasoning_prompt is None else reasoning_prompt}"
