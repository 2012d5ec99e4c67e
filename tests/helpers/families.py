"""Configs of tiny models: the core families, on which every test of a family runs, and all others."""

from __future__ import annotations

from collections.abc import Callable

from transformers import (
    AutoConfig,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    RobertaConfig,
    T5Config,
)

D, HEADS, F, WIDE, VOCAB = 32, 4, 64, 96, 60

CORE: dict[str, Callable[[], PretrainedConfig]] = {
    "bert": lambda: BertConfig(
        vocab_size=VOCAB,
        hidden_size=D,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=F,
    ),
    "roberta": lambda: RobertaConfig(
        vocab_size=VOCAB,
        hidden_size=D,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=F,
    ),
    "deberta-v2": lambda: DebertaV2Config(
        vocab_size=VOCAB,
        hidden_size=D,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=F,
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        position_buckets=8,
        position_biased_input=False,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
    ),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=VOCAB, dim=D, n_layers=2, n_heads=HEADS, hidden_dim=F
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB, n_embd=D, n_layer=2, n_head=HEADS, pad_token_id=0
    ),
    "llama": lambda: LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=D,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        intermediate_size=F,
        pad_token_id=0,
    ),
    "opt": lambda: OPTConfig(
        vocab_size=VOCAB,
        hidden_size=D,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        ffn_dim=F,
        pad_token_id=0,
    ),
    "t5": lambda: T5Config(
        vocab_size=VOCAB,
        d_model=D,
        d_kv=8,
        d_ff=F,
        num_layers=2,
        num_heads=HEADS,
        eos_token_id=1,
        decoder_start_token_id=0,
    ),
}

ENCODER = {
    "vocab_size": VOCAB,
    "hidden_size": D,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": WIDE,
}
DECODER = {**ENCODER, "num_key_value_heads": 2, "pad_token_id": 0, "max_position_embeddings": 64}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 1}
SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
GEMMA4 = {**DECODER, **SPECIAL, "head_dim": 8, "global_head_dim": 16}
FALCON = {
    "vocab_size": VOCAB,
    "hidden_size": D,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "ffn_hidden_size": WIDE,
    "pad_token_id": 0,
}
BART = {
    "vocab_size": VOCAB,
    "d_model": D,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": WIDE,
    "decoder_ffn_dim": WIDE,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "decoder_start_token_id": 1,
}
IMAGES = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": D,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
}
TOWERS = {
    "vision_config": {**IMAGES, "intermediate_size": WIDE},
    "text_config": {**ENCODER, "max_position_embeddings": 16, **SPECIAL},
}
SIGLIP_TOWERS = {**TOWERS, "text_config": {**TOWERS["text_config"], "projection_size": D}}

VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "albert": ("albert", {**ENCODER, "num_hidden_layers": 3, "embedding_size": 16}),
    "bart": ("bart", BART),
    "bloom": (
        "bloom",
        {"vocab_size": VOCAB, "hidden_size": D, "n_layer": 2, "n_head": HEADS, "pad_token_id": 0},
    ),
    "camembert": ("camembert", ENCODER),
    "clip": ("clip", {**TOWERS, "projection_dim": 16}),
    "clip-image": ("clip", {**TOWERS, "projection_dim": 16}),
    "dinov2": ("dinov2", {**IMAGES, "mlp_ratio": 3}),
    "dinov2-swiglu": ("dinov2", {**IMAGES, "mlp_ratio": 4, "use_swiglu_ffn": True}),
    "electra": ("electra", {**ENCODER, "embedding_size": 16}),
    "falcon": ("falcon", FALCON),
    "falcon-40b": ("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-rw": (
        "falcon",
        {**FALCON, "multi_query": False, "alibi": True, "parallel_attn": False, "bias": True},
    ),
    "gemma": ("gemma", {**DECODER, "head_dim": 8, **SPECIAL}),
    "gemma2": ("gemma2", {**DECODER, "head_dim": 8, **SPECIAL, **SLIDING}),
    "gemma3_text": ("gemma3_text", {**DECODER, "head_dim": 8, **SPECIAL, **SLIDING}),
    "gemma4-a4b": (
        "gemma4_text",
        {
            **GEMMA4,
            **SLIDING,
            "hidden_size_per_layer_input": 0,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "enable_moe_block": True,
            "num_experts": 3,
            "top_k_experts": 2,
            "moe_intermediate_size": WIDE,
        },
    ),
    "gemma4-e2b": (
        "gemma4_text",
        {
            **GEMMA4,
            "num_hidden_layers": 4,
            "layer_types": 2 * ["sliding_attention", "full_attention"],
            "sliding_window": 4,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCAB,
        },
    ),
    "gpt_neox": ("gpt_neox", {**ENCODER, "pad_token_id": 0}),
    "gpt_oss": (
        "gpt_oss",
        {
            **DECODER,
            "head_dim": 8,
            **SLIDING,
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "granite": ("granite", DECODER),
    "mbart": ("mbart", BART),
    "mistral": ("mistral", DECODER),
    "mixtral": ("mixtral", {**DECODER, "num_local_experts": 3, "num_experts_per_tok": 2}),
    "modernbert": (
        "modernbert",
        {
            **ENCODER,
            "pad_token_id": 0,
            "local_attention": 4,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    "mpnet": ("mpnet", ENCODER),
    "mt5": (
        "mt5",
        {
            "vocab_size": VOCAB,
            "d_model": D,
            "d_kv": 8,
            "d_ff": WIDE,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_heads": HEADS,
            "decoder_start_token_id": 0,
        },
    ),
    "olmo": ("olmo", DECODER),
    "olmo2": ("olmo2", DECODER),
    "phi3": ("phi3", {**DECODER, **SPECIAL}),
    "qwen2": ("qwen2", DECODER),
    "qwen3": ("qwen3", {**DECODER, "head_dim": 16}),
    "qwen3_moe": (
        "qwen3_moe",
        {
            **DECODER,
            "head_dim": 16,
            "moe_intermediate_size": WIDE,
            "num_experts": 3,
            "num_experts_per_tok": 2,
        },
    ),
    "qwen3_next": (
        "qwen3_next",
        {
            **DECODER,
            "head_dim": 16,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "moe_intermediate_size": WIDE,
            "shared_expert_intermediate_size": WIDE,
            "num_experts": 3,
            "num_experts_per_tok": 2,
        },
    ),
    "siglip": ("siglip", SIGLIP_TOWERS),
    "siglip-image": ("siglip", SIGLIP_TOWERS),
    "smollm3": ("smollm3", {**DECODER, **SPECIAL, "no_rope_layers": [1, 0]}),
    "stablelm": ("stablelm", DECODER),
    "vit": ("vit", {**IMAGES, "intermediate_size": WIDE}),
    "whisper": (
        "whisper",
        {
            **{key: value for key, value in BART.items() if key != "max_position_embeddings"},
            "num_mel_bins": 8,
            "max_source_positions": 7,
            "max_target_positions": 16,
        },
    ),
    "xlm-roberta": ("xlm-roberta", ENCODER),
}
"""Name -> family and settings of what is beside the core; two names of one family are built differently."""


def _config(variant: str) -> Callable[[], PretrainedConfig]:
    family, settings = VARIANTS[variant]
    return lambda: AutoConfig.for_model(family, **settings)


TASKS = {
    "clip-image": "image-classification",
    "dinov2": "image-classification",
    "dinov2-swiglu": "image-classification",
    "gemma4-a4b": "causal-lm",  # transformers has no sequence classifier for it
    "gemma4-e2b": "causal-lm",
    "granite": "causal-lm",  # nor for it
    "siglip-image": "image-classification",
    "vit": "image-classification",
}
"""Name -> task type whose model it has, where that is not classification."""

AUTO_MODELS = {
    "clip": "AutoModel",
    "siglip": "AutoModel",
    "whisper": "AutoModelForSpeechSeq2Seq",
}
"""Name -> class of transformers that builds its model, which no task type trains."""


def task_of(name: str) -> str:
    """The task type of a model here; of those that none trains one for which PEFT has no name."""
    return TASKS.get(name, "image-classification" if name in AUTO_MODELS else "classification")


CONFIGS = CORE | {variant: _config(variant) for variant in VARIANTS}
