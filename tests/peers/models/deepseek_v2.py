"""DeepSeek-V2: latent attention with heads of three sizes, a dense layer, then experts chosen among groups of them."""

import numpy as np
import torch
import transformers

from models import Inputs, greedy, scatter

SETTINGS = {
    "layers": 3, "width": 32, "heads": 4, "hidden": 56, "vocab": 101, "query_rank": 14, "kv_rank": 10, "plain_dim": 6,
    "rotated_dim": 8, "value_dim": 5, "dense": 1, "count": 8, "chosen": 3, "groups": 4, "near": 2, "strength": 2,
    "narrow": 12, "shared": 2, "original": 32,
}  # fmt: skip
PROMPT = 7
YARN = {
    "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 40.0, "beta_fast": 32.0, "beta_slow": 1.0,
    "mscale": 0.707, "mscale_all_dim": 0.707,
}  # fmt: skip


def build(seed: int) -> transformers.DeepseekV2ForCausalLM:
    config = transformers.DeepseekV2Config(
        vocab_size=101,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=3,
        num_attention_heads=4,
        q_lora_rank=14,
        kv_lora_rank=10,
        qk_nope_head_dim=6,
        qk_rope_head_dim=8,
        v_head_dim=5,
        first_k_dense_replace=1,
        n_routed_experts=8,
        num_experts_per_tok=3,
        topk_method="group_limited_greedy",
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.0,
        moe_intermediate_size=12,
        n_shared_experts=2,
        experts_implementation="eager",  # the others ask for rows of whole 16 bytes
        max_position_embeddings=1_280,
        rope_parameters={**YARN, "original_max_position_embeddings": 32},
        tie_word_embeddings=False,
    )
    return scatter(transformers.DeepseekV2ForCausalLM(config), seed)


def published() -> transformers.DeepseekV2ForCausalLM:
    """DeepSeek-V2, 236B."""
    config = transformers.DeepseekV2Config(
        vocab_size=102_400,
        hidden_size=5_120,
        intermediate_size=12_288,
        num_hidden_layers=60,
        num_attention_heads=128,
        q_lora_rank=1_536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        first_k_dense_replace=1,
        n_routed_experts=160,
        num_experts_per_tok=6,
        topk_method="group_limited_greedy",
        n_group=8,
        topk_group=3,
        routed_scaling_factor=16.0,
        moe_intermediate_size=1_536,
        n_shared_experts=2,
        max_position_embeddings=163_840,
        rope_parameters={**YARN, "original_max_position_embeddings": 4_096},
        tie_word_embeddings=False,
    )
    return transformers.DeepseekV2ForCausalLM(config)


def inputs(rng: np.random.Generator) -> Inputs:
    return {"tokens": torch.from_numpy(rng.integers(0, 101, (3, 60)))}


def outputs(model: transformers.DeepseekV2ForCausalLM, inputs: Inputs) -> torch.Tensor:
    return model(input_ids=inputs["tokens"]).logits


def generate(model: transformers.DeepseekV2ForCausalLM, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    return greedy(model, {"input_ids": inputs["tokens"][:, :PROMPT]})
