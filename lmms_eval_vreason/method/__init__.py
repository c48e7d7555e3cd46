"""The paper: entropy, policies, ΔV over the value cache, its optimisers and pruning scores. Imports torch alone."""

from lmms_eval_vreason.method.config import VReason
from lmms_eval_vreason.method.trace import Trace

__all__ = ["Trace", "VReason"]
