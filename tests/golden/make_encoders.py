"""Writes the encoders' golden files beside it: what transformers computes for tiny random models, for every head.

python tests/golden/make_encoders.py (needs the extra `parity`); made with torch 2.13.0 and transformers 5.23.0.
A weight is a function of its name, so that a family's heads share one body, which its file holds once.
"""

import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

GOLDEN = Path(__file__).resolve().parent

# A vocabulary that needs padding, and embeddings narrower than the model where they may be.
_SIZES = {
    "vocab_size": 70,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
}
CONFIGS: dict[str, Any] = {
    "bert": transformers.BertConfig(**_SIZES),
    "roberta": transformers.RobertaConfig(**_SIZES, type_vocab_size=1, layer_norm_eps=1e-5),
    "distilbert": transformers.DistilBertConfig(
        vocab_size=70, dim=16, n_layers=2, n_heads=4, hidden_dim=24, max_position_embeddings=24
    ),
    "albert": transformers.AlbertConfig(**_SIZES | {"num_hidden_layers": 3}, embedding_size=8),
    "electra": transformers.ElectraConfig(**_SIZES, embedding_size=8),
    "megatron_bert": transformers.MegatronBertConfig(**_SIZES),
}
STEMS = {
    "bert": "Bert",
    "roberta": "Roberta",
    "distilbert": "DistilBert",
    "albert": "Albert",
    "electra": "Electra",
    "megatron_bert": "MegatronBert",
}
ENDINGS = (
    *("Model", "ForMaskedLM", "ForPreTraining", "ForNextSentencePrediction", "ForSequenceClassification"),
    *("ForTokenClassification", "ForQuestionAnswering"),
)
LEARNED = ("ForMaskedLM", "BertForSequenceClassification")  # of these, the gradients of a sum of sines are kept too


def inputs(config: Any) -> dict[str, np.ndarray]:
    """A pair of 5 and 7 tokens, and a padded one of 4 and 3."""
    random = np.random.default_rng(0)
    mask = (np.arange(12) < np.array([[12], [7]])).astype(np.int64)
    tokens = np.where(mask, random.integers(2, config.vocab_size, (2, 12)), config.pad_token_id)
    values = {"input_ids": tokens, "attention_mask": mask}
    if getattr(config, "type_vocab_size", 0) > 1:
        values["token_type_ids"] = (np.arange(12) >= np.array([[5], [4]])) * mask
    return values


def fill(model: Any) -> None:
    """Weights, biases and scales that all matter, each a function of its name in the bare model or the head."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            seed = zlib.crc32(name.removeprefix(f"{model.base_model_prefix}.").encode())
            noise = np.random.default_rng(seed).normal(size=tuple(parameter.shape)) * 0.2
            parameter.copy_(torch.tensor(noise + (parameter.ndim == 1 and "norm" in name.lower() and "weight" in name)))


def outputs(found: Any) -> dict[str, torch.Tensor]:
    """What a model returned, by this program's names."""
    theirs = dict(found)
    if "start_logits" in theirs:
        return {"class_logits": torch.stack([theirs["start_logits"], theirs["end_logits"]], -1)}
    ours = {
        "last_hidden_state": "hidden",
        "pooler_output": "pooled",
        "prediction_logits": "logits",
        "seq_relationship_logits": "class_logits",
        "sop_logits": "class_logits",
    }
    if "logits" in theirs:
        return {"class_logits" if theirs["logits"].shape[-1] < 70 else "logits": theirs["logits"]}
    return {ours[name]: array for name, array in theirs.items() if array is not None}


def golden(family: str) -> dict[str, np.ndarray]:
    """A family's weights and inputs and, for each head, its config.json, its tensors' names and its outputs."""
    config = CONFIGS[family]
    given = inputs(config)
    values: dict[str, np.ndarray] = {f"input/{name}": array.astype(np.int32) for name, array in given.items()}
    real = torch.tensor(given["attention_mask"]).bool()
    for ending in ENDINGS:
        architecture = STEMS[family] + ending
        if not hasattr(transformers, architecture):
            continue
        config.num_labels = 3 if architecture.endswith("Classification") else 2
        model = getattr(transformers, architecture)(config).eval()
        fill(model)
        found = outputs(model(**{name: torch.tensor(array) for name, array in given.items()}))
        if architecture == "ElectraForPreTraining":
            found = {"class_logits": found["class_logits"][..., None]}
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            text = (Path(folder) / "config.json").read_text()
            stored = load_file(Path(folder) / "model.safetensors")
        values[f"{architecture}/config"] = np.array(json.dumps(json.loads(text)))
        values[f"{architecture}/tensors"] = np.array(sorted(stored))
        bare = {name.removeprefix(f"{model.base_model_prefix}."): array for name, array in stored.items()}
        assert all(np.array_equal(values.get(f"weight/{name}", array), array) for name, array in bare.items())
        values |= {f"weight/{name}": array for name, array in bare.items()}
        values |= {f"{architecture}/output/{name}": array.detach().numpy() for name, array in found.items()}
        if architecture in LEARNED or ending in LEARNED:
            sum(torch.sin(array[real] if array.ndim == 3 else array).sum() for array in found.values()).backward()
            gradients = {name: parameter.grad for name, parameter in model.named_parameters() if name in stored}
            values |= {f"{architecture}/gradient/{name}": gradient.numpy() for name, gradient in gradients.items()}
    return values


def main() -> None:
    """Writes every file."""
    for family in CONFIGS:
        np.savez_compressed(GOLDEN / f"{family}.npz", allow_pickle=False, **golden(family))


if __name__ == "__main__":
    main()
