"""What the tests that run vLLM share: how it is started on a CPU, and the embedded model as a folder that it loads.

To be imported before vllm, which reads the environment as it is imported.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_WORKER_MULTIPROCESSING_METHOD", "spawn")

from bpo_integrations.models import embedded
from bpo_integrations.models.base import find_base
from bpo_integrations.models.embedded import model_key
from bpo_integrations.models.store import cache_root, stored
from bpo_integrations.rewriter import RECORD_FILE

ADAPTERS = Path(embedded.__file__).parent
OPTIONS = {"dtype": "float32", "max_model_len": 1024, "max_num_seqs": 32, "enforce_eager": True}


def merged_rewriter() -> Path:
    """Return the embedded rewriting model, merged, in float32 safetensors; made once in the cache."""
    adapter = ADAPTERS / "rewrite"

    def build(folder: Path) -> None:
        from bpo_integrations.engines.causal_lm import CausalModel

        model = CausalModel("embedded", adapter, "cpu", "float32", allow_download=False)
        model.model.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        (folder / RECORD_FILE).write_bytes((adapter / RECORD_FILE).read_bytes())

    return stored(cache_root(), model_key("rewrite-safetensors", find_base(), adapter, "float32"), build)
