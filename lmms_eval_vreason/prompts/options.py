"""The options of thinking: prompts and budgets."""

from pathlib import Path

from pydantic import ValidationInfo, field_validator

from lmms_eval_vreason.options import OptionGroup, option


class ThinkingOptions(OptionGroup):
    """Whether the model is asked to think, within which budgets, and what returns to lmms-eval.

    Attributes:
        thinking: Add the reasoning instruction, unless the task has one, and apply the two budgets. ``off`` leaves
            prompt and budget to the task.
        max_thinking_tokens: Token budget for thinking. When it runs out, the thinking is closed and the answer opened.
            Ours.
        max_answer_tokens: Token budget for the answer. Ours.
        reasoning_prompt: The reasoning instruction: a text, or a ``.txt`` or ``.md`` file. None is this package's.
        system_prompt: A system turn in place of the task's: a text, or a ``.txt`` or ``.md`` file.
        enable_thinking: What the chat template gets under this name, in checkpoints whose template knows it (Qwen3.5).
            None leaves it to the template.
        task_prompt: Ask as a task asks another model of lmms-eval, such as ``qwen3_vl``. None: as it asks any model.
        return_thinking: Whether lmms-eval gets the thinking as well.
    """

    thinking: bool = option(True, "usual", changes_answers=True)
    max_thinking_tokens: int = option(1024, "usual", changes_answers=True, ge=1)
    max_answer_tokens: int = option(128, "expert", changes_answers=True, ge=1)
    # Both prompts are in a sample's messages, whose digest is in the resume key.
    reasoning_prompt: str | None = option(None, "expert", changes_answers=False)
    system_prompt: str | None = option(None, "expert", changes_answers=False)
    enable_thinking: bool | None = option(None, "expert", changes_answers=True)
    task_prompt: str | None = option(None, "expert", changes_answers=False)
    return_thinking: bool = option(True, "expert", changes_answers=False)

    @field_validator("reasoning_prompt", "system_prompt")
    @classmethod
    def _text_or_file(cls, text: str | None, info: ValidationInfo) -> str | None:
        if text is None or not text.endswith((".txt", ".md")):
            return text and text.replace("\\n", "\n")
        path = Path(text).expanduser()
        if not path.is_file():
            raise ValueError(f"{info.field_name}={text!r}: there is no such file. Give a text, or a text file's path")
        return path.read_text(encoding="utf-8").strip("\n")
