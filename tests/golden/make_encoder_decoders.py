"""Writes the golden files of encoder-decoders: what transformers computes, and writes, for tiny random models.

python tests/golden/make_encoder_decoders.py (needs the extra `parity`); made with torch 2.13.0 and transformers 5.23.0.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

GOLDEN = Path(__file__).resolve().parent
NEW_TOKENS, NUM_BEAMS = 8, 3
KIN = {  # depths that differ, and a vocabulary that needs padding
    "vocab_size": 70,
    "max_position_embeddings": 24,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
}


def ids(end: int) -> dict[str, int]:
    """Special tokens; at `end`, what this model writes ends after different lengths."""
    return {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": end, "decoder_start_token_id": 0}


T5 = {"vocab_size": 70, "d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4}
T5 |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12}

MODELS: dict[str, tuple[Any, Any]] = {
    "marian": (MarianMTModel, MarianConfig(**KIN, **ids(50), activation_function="relu", scale_embedding=True)),
    "bart": (BartForConditionalGeneration, BartConfig(**KIN, **ids(55))),
    "mbart": (MBartForConditionalGeneration, MBartConfig(**KIN, **ids(55), scale_embedding=True)),
    "t5": (T5ForConditionalGeneration, T5Config(**T5, **ids(67))),
    "t5_v1.1": (
        T5ForConditionalGeneration,
        T5Config(**T5, **ids(44), feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    ),
}
GRADIENTS = {
    "marian": ("model.shared.weight", "model.decoder.layers.1.encoder_attn.k_proj.weight"),
    "bart": ("model.encoder.embed_positions.weight", "model.encoder.layernorm_embedding.weight"),
    "mbart": ("model.encoder.layers.0.self_attn.out_proj.weight", "model.decoder.layer_norm.bias"),
    "t5": (
        "shared.weight",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    ),
    "t5_v1.1": ("lm_head.weight", "decoder.block.1.layer.2.DenseReluDense.wi_0.weight"),
}


def golden(name: str) -> dict[str, np.ndarray]:
    """A model's config.json and weights; sources (one padded) and targets; logits, loss, gradients; what it writes."""
    make, config = MODELS[name]
    torch.manual_seed(7)
    config._attn_implementation = "eager"
    model = make(config).eval()
    if name == "t5_v1.1":  # this version of transformers ties it
        model.lm_head.weight = torch.nn.Parameter(torch.randn(config.vocab_size, config.d_model))
    with torch.no_grad():
        for parameter in model.parameters():  # biases and scales too, and large enough to matter
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
        if name == "marian":  # others come with a buffer of zeros
            model.final_logits_bias += torch.randn_like(model.final_logits_bias)

    source, target = torch.randint(2, config.vocab_size, (2, 14)), torch.randint(2, config.vocab_size, (2, 10))
    present = torch.ones_like(source)
    source[1, 9:], present[1, 9:] = 0, 0
    labels = torch.cat([target[:, 1:], torch.full((2, 1), config.eos_token_id)], dim=1)
    outputs = model(input_ids=source, attention_mask=present, decoder_input_ids=target, labels=labels)
    outputs.loss.backward()
    parameters = dict(model.named_parameters())
    gradients = {f"gradient/{n}": parameters[n].grad.numpy() for n in GRADIENTS[name]}

    model.generation_config.forced_eos_token_id = None
    asked = {"input_ids": source, "attention_mask": present, "max_new_tokens": NEW_TOKENS, "do_sample": False}
    greedy = model.generate(**asked, num_beams=1)
    beams = model.generate(
        **asked,
        num_beams=NUM_BEAMS,
        num_return_sequences=NUM_BEAMS,
        length_penalty=0.6,
        early_stopping="never",
        return_dict_in_generate=True,
        output_scores=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        values = json.loads((Path(folder) / "config.json").read_text())
        stored = {f"weight/{n}": a for n, a in load_file(Path(folder) / "model.safetensors").items()}
    facts = {"logits": outputs.logits, "loss": outputs.loss, "beam_scores": beams.sequences_scores}
    tokens = {"source": source, "present": present, "target": target, "greedy": greedy, "beams": beams.sequences}
    return {
        "config": np.array(json.dumps(values)),
        **{n: a.detach().numpy() for n, a in facts.items()},
        **{n: a.numpy().astype(np.int32) for n, a in tokens.items()},
        **stored,
        **gradients,
    }


def main() -> None:
    """Writes every file."""
    for name in MODELS:
        np.savez_compressed(GOLDEN / f"{name}.npz", allow_pickle=False, **golden(name))


if __name__ == "__main__":
    main()
