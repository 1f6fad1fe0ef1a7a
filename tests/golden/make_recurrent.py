"""Writes recurrent_cells.npz and recurrent_translation.npz beside it: what torch computes with random weights.

The first holds torch.nn's own RNN, LSTM and GRU over packed sequences of different lengths. The second holds
encoder-decoders made of them, whose attention is spelled out for each target token, as in Luong et al. 2015.

python tests/golden/make_recurrent.py (needs the extra `parity`); made with torch 2.13.0.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

GOLDEN = Path(__file__).resolve().parent
CELLS: dict[str, Any] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
LENGTHS = torch.tensor([7, 3, 5])

# name: cell, score, input feeding
TRANSLATORS = {
    "rnn_none": ("rnn", "none", False),
    "lstm_none": ("lstm", "none", False),
    "gru_none": ("gru", "none", False),
    "lstm_dot": ("lstm", "dot", False),
    "gru_general": ("gru", "general", False),
    "rnn_concat": ("rnn", "concat", False),
    "lstm_general_fed": ("lstm", "general", True),
    "gru_concat_fed": ("gru", "concat", True),
    "lstm_location_fed": ("lstm", "location", True),
}
SOURCE_VOCAB, VOCAB, WIDTH, STATE, LAYERS, PLACES = 13, 11, 5, 6, 2, 9


class Translator(nn.Module):
    """An encoder-decoder whose source is read by torch, and whose target is written one token at a time."""

    def __init__(self, cell: str, score: str, feeding: bool):
        super().__init__()
        self.score, self.feeding = score, feeding
        self.source = nn.Embedding(SOURCE_VOCAB, WIDTH)
        self.target = nn.Embedding(VOCAB, WIDTH)
        self.encoder = CELLS[cell](WIDTH, STATE, LAYERS, batch_first=True)
        self.decoder = CELLS[cell](WIDTH + STATE if feeding else WIDTH, STATE, LAYERS, batch_first=True)
        self.w_score = nn.Linear(*{"general": (STATE, STATE), "concat": (2 * STATE, STATE)}.get(score, (STATE, PLACES)))
        self.w_score.bias = None
        self.v_score = nn.Parameter(torch.randn(STATE))
        self.w_combine = nn.Linear(2 * STATE, STATE, bias=False)
        self.head = nn.Linear(STATE, VOCAB, bias=False)

    def forward(self, source: torch.Tensor, lengths: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        packed = pack_padded_sequence(self.source(source), lengths, batch_first=True, enforce_sorted=False)
        packed_states, last = self.encoder(packed)
        states, _ = pad_packed_sequence(packed_states, batch_first=True)
        padding = torch.arange(states.shape[1])[None] >= lengths[:, None]
        combination = torch.zeros(len(source), STATE)
        logits = []
        for x in self.target(target).unbind(1):
            x = torch.cat([x, combination], 1) if self.feeding else x
            h, last = self.decoder(x[:, None], last)
            combination = h[:, 0] if self.score == "none" else self.attend(h[:, 0], states, padding)
            logits.append(self.head(combination))
        return torch.stack(logits, 1)

    def attend(self, h: torch.Tensor, states: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        """The combination of one state of the decoder, [B, STATE], with the encoder's states."""
        if self.score in ("dot", "general"):
            keys = states if self.score == "dot" else self.w_score(states)
            seen = ~padding[:, None]
            context = nn.functional.scaled_dot_product_attention(h[:, None], keys, states, seen, scale=1.0)[:, 0]
        else:
            if self.score == "concat":
                pairs = torch.cat([h[:, None].expand_as(states), states], -1)
                scores = torch.tanh(self.w_score(pairs)) @ self.v_score
            else:
                scores = self.w_score(h)
            probabilities = scores[:, : states.shape[1]].masked_fill(padding, -torch.inf).softmax(-1)
            context = (probabilities[:, :, None] * states).sum(1)
        return torch.tanh(self.w_combine(torch.cat([context, h], -1)))


def cells(name: str) -> dict[str, np.ndarray]:
    """Two layers over packed sequences: outputs (zero after each sequence's end), last states, gradients, weights."""
    torch.manual_seed(7)
    model = CELLS[name](WIDTH, STATE, LAYERS, batch_first=True)
    shaken(model)
    inputs = torch.randn(len(LENGTHS), int(LENGTHS.max()), WIDTH)
    packed, last = model(pack_padded_sequence(inputs, LENGTHS, batch_first=True, enforce_sorted=False))
    outputs, _ = pad_packed_sequence(packed, batch_first=True)
    last = last if isinstance(last, tuple) else (last,)
    (torch.sin(outputs).sum() + sum(torch.sin(2 * state).sum() for state in last)).backward()
    found = {"inputs": inputs, "lengths": LENGTHS, "outputs": outputs, "last": torch.stack(last)}
    return plain(found, model, tuple(dict(model.named_parameters())))


def translator(name: str) -> dict[str, np.ndarray]:
    """A whole encoder-decoder: tokens, logits, the loss of predicting each next token, gradients, weights."""
    torch.manual_seed(7)
    model = Translator(*TRANSLATORS[name])
    shaken(model)
    source = torch.randint(0, SOURCE_VOCAB, (len(LENGTHS), int(LENGTHS.max())))
    target = torch.randint(0, VOCAB, (len(LENGTHS), 6))
    logits = model(source, LENGTHS, target)
    loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), target[:, 1:].flatten())
    loss.backward()
    found = {"source": source, "lengths": LENGTHS, "target": target, "logits": logits, "loss": loss}
    gradients = ("source.weight", "encoder.weight_hh_l0", "decoder.weight_ih_l0", "w_score.weight", "w_combine.weight")
    return plain(found, model, gradients)


def shaken(model: nn.Module) -> None:
    """Makes every weight large enough to matter."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)


def plain(found: dict[str, torch.Tensor], model: nn.Module, gradients: tuple[str, ...]) -> dict[str, np.ndarray]:
    """All as arrays; the weights that the model used, and the gradients named of them."""
    used = {name: p for name, p in model.named_parameters() if p.grad is not None}
    arrays = {name: tensor.detach().numpy() for name, tensor in found.items()}
    arrays |= {f"weight/{name}": p.detach().numpy() for name, p in used.items()}
    return arrays | {f"gradient/{name}": p.grad.numpy() for name, p in used.items() if name in gradients}


def main() -> None:
    """Writes both files."""
    for file, make, names in (("cells", cells, CELLS), ("translation", translator, TRANSLATORS)):
        arrays = {f"{name}/{key}": array for name in names for key, array in make(name).items()}
        np.savez_compressed(GOLDEN / f"recurrent_{file}.npz", allow_pickle=False, **arrays)


if __name__ == "__main__":
    main()
