"""Tiny random mixtures of experts of transformers, made from configs: no network."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCABULARY, EXPERTS, TOP_K, DIM = 50, 6, 2, 16
SIZES = {"vocab_size": VOCABULARY, "hidden_size": DIM, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
         "num_key_value_heads": 2, "num_experts_per_tok": TOP_K, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LATENT = {"q_lora_rank": None, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}  # DeepSeek's attention

# name: class of config, what it needs beside SIZES. Qwen2-MoE has a dense block in the middle, and shared experts.
MIXTURES = {
    "mixtral": ("MixtralConfig", {"num_local_experts": EXPERTS}),
    "olmoe": ("OlmoeConfig", {"num_experts": EXPERTS}),
    "qwen2_moe": ("Qwen2MoeConfig", {"num_experts": EXPERTS, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 12, "mlp_only_layers": [1]}),
    "qwen3_moe": ("Qwen3MoeConfig", {"num_experts": EXPERTS, "moe_intermediate_size": 24, "head_dim": 8, "norm_topk_prob": True}),
    "deepseek_v2": ("DeepseekV2Config", {**LATENT, "n_routed_experts": EXPERTS, "moe_intermediate_size": 24, "n_shared_experts": 1, "first_k_dense_replace": 1,
                                         "topk_method": "greedy", "n_group": None, "topk_group": None, "head_dim": 8}),
    "deepseek_v3": ("DeepseekV3Config", {**LATENT, "n_routed_experts": EXPERTS, "moe_intermediate_size": 24, "n_shared_experts": 1, "first_k_dense_replace": 1,
                                         "n_group": 2, "topk_group": 2, "num_nextn_predict_layers": 0}),
}


def make_mixture(name, dtype=None, **changes):
    """A model with random weights large enough for routers to prefer some experts."""
    kind, sizes = MIXTURES[name]
    config = getattr(transformers, kind)(**{**SIZES, **sizes, **changes})
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
        for key, buffer in model.named_buffers():
            if key.endswith("e_score_correction_bias"):
                buffer.normal_(0, 0.2)
    return model.to(dtype or torch.float32)


def token_batch(seed=0, texts=3, length=11):
    """(ids, mask) with padding at the end of all texts but the first."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (texts, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, texts):
        mask[row, length - 2 * row:] = 0
    return ids * mask, mask


def routed_blocks(model):
    """{layer: the block with router and experts}"""
    return {int(name.split(".")[2]): block for name, block in model.named_modules() if hasattr(block, "experts") and name.count(".") == 3}
