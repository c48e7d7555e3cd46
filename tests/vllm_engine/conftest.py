"""Set before vLLM is imported: one process, little memory, and no binding to cores."""

import os
from importlib.util import find_spec

import pytest

# `make test-vllm` has it.
collect_ignore_glob = [] if find_spec("vllm") else ["test_*.py"]

for name, value in {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}.items():
    os.environ.setdefault(name, value)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Folder of a random Qwen2.5-VL in float32 whose next tokens have 3 to 6 nats."""
    from vllm_runs import peaked_checkpoint

    return peaked_checkpoint(tmp_path_factory.mktemp("vllm"))
