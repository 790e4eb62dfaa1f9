"""A double of MindSpeed-LLM's adaptor."""

import os

if os.environ.get("TRAINING_BACKEND", "mcore").lower() == "mcore":
    from mindspeed_llm.tasks import megatron_adaptor_v2 as megatron_adaptor  # noqa: F401
