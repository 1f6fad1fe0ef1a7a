"""Writes vit.npz and vit_pooled.npz beside it: what transformers computes for tiny random vision transformers.

python tests/golden/make_vision.py (needs the extra `parity`); made with torch 2.13.0 and transformers 5.23.0.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import ViTConfig, ViTForImageClassification, ViTModel

GOLDEN = Path(__file__).resolve().parent
SIZES = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "image_size": 12,
    "patch_size": 4,
}
GRADIENTS = (
    "embeddings.cls_token",
    "embeddings.position_embeddings",
    "embeddings.patch_embeddings.projection.weight",
    "encoder.layer.0.attention.attention.query.weight",
    "encoder.layer.1.output.dense.bias",
)


def golden(pooled: bool) -> dict[str, np.ndarray]:
    """A model's config.json, weights and some gradients; images of its size and of another, and its outputs."""
    torch.manual_seed(7)
    if pooled:
        model = ViTModel(ViTConfig(**SIZES, num_channels=1, hidden_act="gelu_new")).eval()
    else:
        model = ViTForImageClassification(ViTConfig(**SIZES, num_channels=2, layer_norm_eps=1e-6, num_labels=5)).eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for parameter in model.parameters():  # biases and scales too, and large enough to matter
            parameter.add_(torch.randn_like(parameter) * 0.2)
    images = torch.rand(3, model.config.num_channels, 12, 12) * 2 - 1
    others = torch.rand(2, model.config.num_channels, 20, 8) * 2 - 1

    def computed(pixels: torch.Tensor) -> list[torch.Tensor]:
        outputs = model(pixels, interpolate_pos_encoding=True)
        return [outputs.last_hidden_state, outputs.pooler_output] if pooled else [outputs.logits]

    outputs, of_others = computed(images), computed(others)
    loss = sum(torch.sin(3 * output).mean() for output in outputs + of_others)
    loss.backward()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = (Path(folder) / "config.json").read_text()
        stored = load_file(Path(folder) / "model.safetensors")
        for parameter in model.parameters():  # their gradients in the layout of the file
            parameter.data = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        model.save_pretrained(folder)
        gradients = load_file(Path(folder) / "model.safetensors")
    arrays = {f"output/{i}": output for i, output in enumerate(outputs)}
    arrays |= {f"other_output/{i}": output for i, output in enumerate(of_others)}
    arrays |= {"images": images.permute(0, 2, 3, 1), "other_images": others.permute(0, 2, 3, 1), "loss": loss}
    plain = {name: tensor.detach().numpy() for name, tensor in arrays.items()}
    plain |= {f"weight/{name}": array for name, array in stored.items()}
    plain |= {f"gradient/{name}": array for name, array in gradients.items() if name.endswith(GRADIENTS)}
    return {"config": np.array(json.dumps(json.loads(config))), **plain}


def main() -> None:
    """Writes both files."""
    for name, pooled in (("vit", False), ("vit_pooled", True)):
        np.savez_compressed(GOLDEN / f"{name}.npz", allow_pickle=False, **golden(pooled))


if __name__ == "__main__":
    main()
