"""The decoding core: V-Reason on any transformers Qwen2.5-VL model. Needs torch and transformers only."""

from lmms_eval_vreason.decoding.config import VReason
from lmms_eval_vreason.decoding.generate import Generation
from lmms_eval_vreason.decoding.trace import Trace

__all__ = ["Generation", "Trace", "VReason"]
