"""VideoMathQA with subtitles, where lmms-eval gives one model name more subtitles than any other."""

from typing import Any

from lmms_eval_vreason.protocol.stock import stock_config


def _for_every_model(task: str) -> dict[str, dict[str, Any]]:
    return {"default": stock_config(task)["lmms_eval_specific_kwargs"]["qwen2_5_vl"]}


mcq, mcq_cot = _for_every_model("videomathqa_mcq"), _for_every_model("videomathqa_mcq_cot")
mbin, mbin_cot = _for_every_model("videomathqa_mbin"), _for_every_model("videomathqa_mbin_cot")
