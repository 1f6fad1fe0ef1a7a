"""Hugging Face folders out and in: parity with transformers, round trips, and folders that are refused."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import train.export
from data.tokenizers.load import load_tokenizer
from data.tokenizers.plain import ByteTokenizer
from model.cost import count_parameters
from model.decoder import DecoderConfig
from model.encoder import EncoderConfig
from model.families.weights import Layout
from model.parameters import merge
from model.positions import RopeScaling
from model.presets import PRESETS, family_of
from model.structures import STRUCTURES
from model.vision import VisionConfig
from train.export import export_folder, import_folder
from train.state import blueprint

GOLDEN = Path(__file__).resolve().parents[1] / "golden"

GPT2 = DecoderConfig(num_layers=2, model_dim=16, num_heads=4, vocab_size=300, max_length=24, dropout=0.1)
LLAMA = DecoderConfig(
    num_layers=2,
    model_dim=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    mlp_dim=24,
    vocab_size=300,
    max_length=64,
    norm="rms",
    activation="swiglu",
    positions="rope",
    rope_theta=500.0,
    rope_scaling=RopeScaling(factor=4.0, high_frequency_factor=3.0, original_max_length=16),
    use_bias=False,
    tie_embeddings=False,
)
PALM = dataclasses.replace(
    LLAMA,
    num_kv_heads=1,
    norm="layer",
    norm_position="parallel",
    norm_bias=False,
    rope_scaling=None,
    tie_embeddings=True,
    logit_scale=0.25,
    init="fan_in",
)
ARCHITECTURES = {"g": "GPT2LMHeadModel", "l": "LlamaForCausalLM", "p": "CohereForCausalLM"}  # by first letter
CONFIGS = {
    "palm": PALM,
    "gpt2": GPT2,
    "gpt2_untied": dataclasses.replace(GPT2, tie_embeddings=False, mlp_dim=20),
    "llama": LLAMA,
    "llama_tied": dataclasses.replace(LLAMA, tie_embeddings=True, rope_scaling=None, head_dim=4, num_kv_heads=4),
}

_PAIRS: dict[str, Any] = {"num_layers": 1, "num_decoder_layers": 2, "model_dim": 16, "num_heads": 4, "mlp_dim": 24}
_PAIRS |= {"vocab_size": 300, "max_length": 24}
MARIAN = dataclasses.replace(PRESETS["transformer-tiny"], **_PAIRS)
BERT = EncoderConfig(num_layers=1, model_dim=16, num_heads=4, mlp_dim=24, vocab_size=300, max_length=24)
VIT = VisionConfig(num_layers=1, model_dim=16, num_heads=4, mlp_dim=24, image_size=32, patch_size=8, num_classes=3)
# Of each structure that is no decoder: a model, and its architecture.
OTHERS: dict[str, tuple[Any, str]] = {
    "transformer": (MARIAN, "MarianMTModel"),
    "separate": (
        dataclasses.replace(MARIAN, share_embeddings=False, logit_bias=True, attention_bias=True),
        "MarianMTModel",
    ),
    "untied": (
        dataclasses.replace(MARIAN, share_embeddings=False, tie_embeddings=False, attention_bias=True),
        "MarianMTModel",
    ),
    "bart": (dataclasses.replace(PRESETS["bart-base"], **_PAIRS), "BartForConditionalGeneration"),
    "mbart": (dataclasses.replace(PRESETS["megamolbart-style-small"], **_PAIRS), "MBartForConditionalGeneration"),
    "t5": (
        dataclasses.replace(PRESETS["t5-small"], **_PAIRS, head_dim=6, logit_scale=0.25, init_std=0.25),
        "T5ForConditionalGeneration",
    ),
    "t5_v1.1": (
        dataclasses.replace(PRESETS["t5-v1.1-small"], **_PAIRS, head_dim=6, init_std=0.25),
        "T5ForConditionalGeneration",
    ),
    "vit": (dataclasses.replace(VIT, classes=("cat", "dog", "\N{SNOWMAN}")), "ViTForImageClassification"),
    "bert": (
        dataclasses.replace(BERT, head="sequence_classification", classes=("ham", "spam")),
        "BertForSequenceClassification",
    ),
    "roberta": (dataclasses.replace(BERT, position_offset=2, pooler_dropout=True), "RobertaForMaskedLM"),
}


def random_params(config: Any, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of which all matter, biases and scales too; padding is zero."""
    random = np.random.default_rng(seed)
    params = {}
    for name, weight in blueprint(config).declared.items():
        params[name] = (random.normal(size=weight.shape) * 0.2 + (weight.kind == "scale")).astype(np.float32)
        if "vocab" in weight.axes:
            params[name][config.vocab_size :] = 0
    return params


def logits(config: Any, params: dict[str, Any], tokens: np.ndarray) -> np.ndarray:
    skeleton = blueprint(config).skeleton
    weights = {name: jnp.asarray(a, jnp.float32) for name, a in params.items()}
    return np.asarray(jax.jit(lambda weights: merge(skeleton, weights)(tokens))(weights))[..., : config.vocab_size]


def golden_folder(name: str, folder: Path, **changes: Any) -> dict[str, np.ndarray]:
    """Writes a golden model as a folder (a key of config.json that is `...` is left out); gives the golden values."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        golden = dict(file.items())
    folder.mkdir()
    values = {key: value for key, value in (json.loads(str(golden["config"])) | changes).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(values))
    save_file(tensors_of(golden), folder / "model.safetensors", metadata={"format": "pt"})
    return golden


def tensors_of(golden: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key.removeprefix("weight/"): a for key, a in golden.items() if key.startswith("weight/")}


@pytest.fixture
def gpt2_folder(tmp_path: Path) -> Path:
    golden_folder("gpt2", tmp_path / "gpt2")
    return tmp_path / "gpt2"


def imported(folder: Path) -> tuple[Any, dict[str, np.ndarray], dict[str, bytes]]:
    """What `import_folder` gives, of which a test knows the structure."""
    return import_folder(folder)


def refused(folder: Path, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as error:
        import_folder(folder)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{folder}: ")


def rewrite(folder: Path, change) -> None:
    """Change the tensors of a folder; `change` gets them and gives them back."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file)


# Parity with transformers


@pytest.mark.core
@pytest.mark.parametrize("name", ["gpt2", "llama", "llama_tied", "palm"])
def test_an_imported_model_computes_what_transformers_computes(name: str, tmp_path: Path):
    golden = golden_folder(name, tmp_path / "model")
    config, params, _ = imported(tmp_path / "model")
    tokens, expected = golden["tokens"], golden["logits"]
    assert np.abs(logits(config, params, tokens) - expected).max() <= 1e-5 * np.abs(expected).max()

    plan = blueprint(config)

    def loss(params):
        log_p = jax.nn.log_softmax(merge(plan.skeleton, params)(tokens)[:, :-1])
        return -jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1).mean()

    value, gradients = jax.jit(jax.value_and_grad(loss))({n: jnp.asarray(a) for n, a in params.items()})
    assert abs(value - golden["loss"]) <= 1e-5 * golden["loss"]
    layout = Layout(family_of(config).weights(config), plan.declared, config.vocab_size)
    theirs = dict(layout.to_hugging_face(gradients))
    for key in (key for key in golden if key.startswith("gradient/")):
        difference = np.abs(theirs[key.removeprefix("gradient/")] - golden[key]).max()
        assert difference <= 1e-5 * np.abs(golden[key]).max(), key


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_loads_an_exported_model_and_computes_the_same(name: str, tmp_path: Path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config, params = CONFIGS[name], random_params(CONFIGS[name])
    export_folder(params, config, None, tmp_path / "model", shard_bytes=8_000)
    model, facts = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", attn_implementation="eager", output_loading_info=True
    )
    assert not any(facts[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.num_parameters() == count_parameters(config)
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (2, 20), np.int32)
    with torch.no_grad():
        expected = model.eval()(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    assert np.abs(logits(config, params, tokens) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_transformers_loads_the_exported_tokenizer(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    ByteTokenizer().save(tmp_path / "tokenizer")
    export_folder(random_params(GPT2), GPT2, tmp_path / "tokenizer", tmp_path / "model")
    text = "Grüße,  \n\tworld \N{GRINNING FACE}"
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert loaded(text).input_ids == ByteTokenizer().encode(text).tolist()
    assert (loaded.bos_token_id, loaded.eos_token_id) == (256, 256)
    assert loaded.decode(loaded(text).input_ids) == text
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "model")
    assert (generation.bos_token_id, generation.eos_token_id) == (256, 256)


@pytest.fixture(scope="module", params=OTHERS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path, Any]:
    """The configuration and the weights of each of the others in turn, its folder, and the receipt."""
    config, _ = OTHERS[request.param]
    params, folder = random_params(config), tmp_path_factory.mktemp("exported") / request.param
    return config, params, folder, export_folder(params, config, None, folder)


@pytest.mark.core
def test_any_structure_survives_export_and_import(exported: tuple[Any, Any, Path, Any]):
    config, params, folder, receipt = exported
    assert receipt["architecture"] == OTHERS[folder.name][1]
    assert receipt["parameters"] == count_parameters(config)
    assert receipt["max_logit_difference"] <= 1e-5 * receipt["max_logit"]
    again, reread, _ = import_folder(folder)
    assert again.resolved() == config.resolved()
    assert reread.keys() == params.keys()
    assert all(np.array_equal(reread[name], params[name]) for name in params)


def test_transformers_loads_any_structure_and_computes_the_same(exported: tuple[Any, Any, Path, Any]):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config, params, folder, receipt = exported
    model, facts = getattr(transformers, receipt["architecture"]).from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not any(facts[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    inputs = STRUCTURES[type(config)].example(config)
    if "tokens_BL" in inputs:
        inputs["tokens_BL"] = np.maximum(inputs["tokens_BL"], 2)  # RoBERTa's positions follow from what is padding
    if isinstance(config, VisionConfig):
        given = {"pixel_values": inputs["images_BHWC"].transpose(0, 3, 1, 2)}
    elif isinstance(config, EncoderConfig):
        given = {
            "input_ids": inputs["tokens_BL"],
            "attention_mask": inputs["segments_BL"],
            "token_type_ids": inputs["types_BL"],
        }
    else:
        given = {
            "input_ids": inputs["source_BM"],
            "attention_mask": inputs["source_segments_BM"],
            "decoder_input_ids": inputs["target_BL"],
        }
    with torch.no_grad():
        expected = model.eval()(**{name: torch.tensor(array) for name, array in given.items()}).logits.numpy()
    skeleton = blueprint(config).skeleton
    said = jax.jit(lambda params: merge(skeleton, params)(**inputs))(params)
    ours = np.asarray(next(iter(said.values())) if isinstance(said, dict) else said)
    difference = np.abs(ours[..., : expected.shape[-1]] - expected)
    if expected.ndim == 3 and isinstance(config, EncoderConfig):
        difference = difference[inputs["segments_BL"] > 0]
    assert difference.max() <= 1e-5 * np.abs(expected).max()
    if getattr(config, "classes", ()):
        assert tuple(model.config.id2label.values()) == config.classes
        assert model.config.label2id == {name: i for i, name in enumerate(config.classes)}


# Export


@pytest.mark.core
@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_survives_export_and_import(name: str, tmp_path: Path):
    config, params = CONFIGS[name], random_params(CONFIGS[name])
    progress: list[tuple[int, int]] = []
    receipt = export_folder(params, config, None, tmp_path / "model", progress=lambda *done: progress.append(done))
    assert receipt["architecture"] == ARCHITECTURES[name[0]]
    assert receipt["parameters"] == progress[-1][0] // 4 == progress[-1][1] // 4
    assert receipt["max_logit_difference"] <= 1e-5 * receipt["max_logit"]
    kept = json.loads((tmp_path / "model" / "jumok_receipt.json").read_text())
    assert {"path": str(tmp_path / "model"), **kept} == receipt
    assert not [path for path in tmp_path.iterdir() if path.name != "model"]

    again, reread, files = imported(tmp_path / "model")
    assert again.resolved() == dataclasses.replace(config, dropout=again.dropout).resolved()
    assert reread.keys() == params.keys()
    for weight, array in params.items():
        np.testing.assert_array_equal(array, reread[weight])
    assert files.keys() == {"generation_config.json"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounded_weights_stay_rounded_through_import_and_export(dtype: str, tmp_path: Path):
    params = {name: jnp.asarray(array) for name, array in random_params(LLAMA).items()}
    receipt = export_folder(params, LLAMA, None, tmp_path / "first", dtype=dtype)
    assert receipt["dtype"] == json.loads((tmp_path / "first" / "config.json").read_text())["torch_dtype"] == dtype
    config, reread, _ = import_folder(tmp_path / "first")
    assert {array.dtype.name for array in reread.values()} == {dtype}
    export_folder(reread, config, None, tmp_path / "second")
    first, second = (tmp_path / name / "model.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_many_files_hold_what_one_would(tmp_path: Path):
    params = random_params(GPT2)
    export_folder(params, GPT2, None, tmp_path / "one")
    export_folder(params, GPT2, None, tmp_path / "many", shard_bytes=10_000)
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert len(files) > 3
    assert sum(file.stat().st_size > 12_000 for file in files) == 1  # the embedding, larger than the limit by itself
    together = {name: array for file in files for name, array in load_file(file).items()}
    alone = load_file(tmp_path / "one" / "model.safetensors")
    assert together.keys() == alone.keys()
    assert all(np.array_equal(together[name], alone[name]) for name in alone)
    _, reread, _ = import_folder(tmp_path / "many")
    assert all(np.array_equal(reread[name], params[name]) for name in params)


def test_weights_that_lie_on_a_mesh_are_exported(tmp_path: Path):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("fsdp",))
    params: dict[str, Any] = random_params(LLAMA)
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "fsdp"))
    params["stack.layers.mlp.down"] = jax.device_put(params["stack.layers.mlp.down"], spread)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    params = {name: a if isinstance(a, jax.Array) else jax.device_put(a, everywhere) for name, a in params.items()}
    export_folder(params, LLAMA, None, tmp_path / "model")
    _, reread, _ = import_folder(tmp_path / "model")
    np.testing.assert_array_equal(reread["stack.layers.mlp.down"], params["stack.layers.mlp.down"])


def test_a_target_that_is_not_empty_is_refused_and_an_empty_one_taken(tmp_path: Path):
    params = random_params(GPT2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(ValueError, match="already exists and is not an empty folder"):
            export_folder(params, GPT2, None, tmp_path / name)
    (tmp_path / "empty").mkdir()
    export_folder(params, GPT2, None, tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "full"]


def test_an_export_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    params = random_params(GPT2)
    with pytest.raises(ValueError, match="dtype=int8 must be one of float32, float16, bfloat16"):
        export_folder(params, GPT2, None, tmp_path / "model", dtype="int8")
    with pytest.raises(ValueError, match="not finite as float16; export as bfloat16 or float32"):
        export_folder(
            params | {"norm.bias": params["norm.bias"] + 1e6}, GPT2, None, tmp_path / "model", dtype="float16"
        )
    with pytest.raises(ValueError, match="not finite as float32; export another checkpoint"):
        export_folder(params | {"norm.bias": params["norm.bias"] * np.nan}, GPT2, None, tmp_path / "model")
    with pytest.raises(ValueError, match="no known architecture"):
        export_folder(params, dataclasses.replace(GPT2, norm="rms"), None, tmp_path / "model")

    # A file that is not what it should be, and a config.json that says something else.
    def damaged(shard, *args, **options):
        save_file(shard | {"transformer.ln_f.bias": shard["transformer.ln_f.bias"] + 1}, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(train.export, "save_file", damaged)
        with pytest.raises(RuntimeError, match=r"the tensor transformer\.ln_f\.bias was not written as it is"):
            export_folder(params, GPT2, None, tmp_path / "model")
    with monkeypatch.context() as patch:
        other = dataclasses.replace(GPT2, norm_epsilon=0.1)
        patch.setattr(family_of(GPT2), "from_hugging_face_config", lambda values: other)
        with pytest.raises(RuntimeError, match="the folder's logits differ from the run's by"):
            export_folder(params, GPT2, None, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_the_files_of_a_tokenizer_are_carried_byte_for_byte(tmp_path: Path):
    golden_folder("gpt2", tmp_path / "model")
    given = {
        "tokenizer.json": b'{"model": {"type": "BPE", "vocab": {"a": 0, "<e>": 1}, "merges": []}}',
        "tokenizer_config.json": b'{"tokenizer_class": "GPT2Tokenizer",  "eos_token": "<e>"}',
        "merges.txt": "#version: 0.2\n\u0120 a\n".encode(),
        "generation_config.json": b'{"eos_token_id": [1, 3], "temperature": 0.6}',
    }
    for name, content in given.items():
        (tmp_path / "model" / name).write_bytes(content)
    (tmp_path / "model" / "README.md").write_text("not carried")
    config, params, files = import_folder(tmp_path / "model")
    assert files == given
    (tmp_path / "tokenizer").mkdir()
    for name, content in files.items():
        (tmp_path / "tokenizer" / name).write_bytes(content)
    export_folder(params, config, tmp_path / "tokenizer", tmp_path / "again")
    assert {name: (tmp_path / "again" / name).read_bytes() for name in given} == given
    assert json.loads((tmp_path / "again" / "config.json").read_text())["eos_token_id"] == [1, 3]


def test_a_tokenizer_made_here_can_be_run_again_after_an_import(tmp_path: Path):
    ByteTokenizer().save(tmp_path / "tokenizer")
    export_folder(random_params(GPT2), GPT2, tmp_path / "tokenizer", tmp_path / "model")
    _, _, files = import_folder(tmp_path / "model")
    (tmp_path / "again").mkdir()
    for name, content in files.items():
        (tmp_path / "again" / name).write_bytes(content)
    loaded = load_tokenizer(tmp_path / "again")
    assert loaded.digest == ByteTokenizer().digest


# What a folder says of tokens, classes and inputs


def described(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What config.json and generation_config.json hold."""
    model, generation = ((folder / name).read_text() for name in ("config.json", "generation_config.json"))
    return json.loads(model), json.loads(generation)


@pytest.mark.parametrize("start", [None, 7])
def test_targets_begin_with_the_models_token_or_the_tokenizers_start(start: int | None, tmp_path: Path):
    config = dataclasses.replace(MARIAN, decoder_start_id=start)
    ByteTokenizer().save(tmp_path / "tokenizer")
    export_folder(random_params(config), config, tmp_path / "tokenizer", tmp_path / "model")
    for values in described(tmp_path / "model"):
        assert values["decoder_start_token_id"] == (256 if start is None else start)
        assert (values["bos_token_id"], values["eos_token_id"], values["pad_token_id"]) == (256, 256, None)
    (tmp_path / "model" / "generation_config.json").unlink()  # old folders have it in config.json alone
    again, _, files = imported(tmp_path / "model")
    assert again.decoder_start_id == (256 if start is None else start)
    assert json.loads(files["generation_config.json"])["decoder_start_token_id"] == again.decoder_start_id


def test_the_padding_by_which_positions_are_counted_is_the_models(tmp_path: Path):
    config = OTHERS["roberta"][0]
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "generation_config.json").write_text('{"pad_token_id": 0, "bos_token_id": 3}')
    export_folder(random_params(config), config, tmp_path / "tokenizer", tmp_path / "model")
    values, generation = described(tmp_path / "model")
    assert (values["pad_token_id"], values["bos_token_id"]) == (1, 3)
    assert generation["pad_token_id"] == 0
    assert imported(tmp_path / "model")[0].position_offset == 2


def test_a_model_of_images_has_no_text_side_and_a_receipt_by_digest(tmp_path: Path):
    config = dataclasses.replace(VIT, image_size=48, head="pooler", num_classes=1000)
    receipt = export_folder(random_params(config), config, None, tmp_path / "model")
    image = receipt["inputs"]["images_BHWC"]
    assert (image["shape"], image["dtype"], len(image["sha256"])) == ([2, 48, 48, 3], "float32", 64)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "config.json",
        "model.safetensors",
        "jumok_receipt.json",
        "preprocessor_config.json",
    }
    assert "bos_token_id" not in json.loads((tmp_path / "model" / "config.json").read_text())


# Folders of others


SINES = "model.encoder.embed_positions.weight"


@pytest.fixture(scope="module")
def marian_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("marian") / "model"
    export_folder(random_params(MARIAN), MARIAN, None, folder)
    return folder


def changed(folder: Path, target: Path, change) -> Path:
    """A copy of a folder whose tensors are changed."""
    shutil.copytree(folder, target)
    rewrite(target, change)
    return target


def shifted_by(amount: float, name: str):
    return lambda tensors: tensors | {name: tensors[name] + np.float32(amount)}


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: {n: a for n, a in tensors.items() if "embed_positions" not in n and n != "final_logits_bias"},
        lambda tensors: tensors | {SINES: np.where(tensors[SINES] == 0, 0, tensors[SINES] + np.float32(5e-7))},
        lambda tensors: tensors | {SINES: tensors[SINES].astype(ml_dtypes.bfloat16)},
    ],
    ids=["absent", "rounded", "bfloat16"],
)
def test_what_is_no_weight_may_be_absent_or_rounded(change, marian_folder: Path, tmp_path: Path):
    config, params, _ = import_folder(changed(marian_folder, tmp_path / "model", change))
    assert config.resolved() == MARIAN.resolved()
    assert all(np.array_equal(array, params[name]) for name, array in random_params(MARIAN).items())


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (shifted_by(2e-6, SINES), SINES),
        (shifted_by(1e-9, "final_logits_bias"), "final_logits_bias"),
        (shifted_by(1e-9, "model.encoder.layers.0.self_attn.q_proj.bias"), "q_proj.bias"),
        (lambda tensors: tensors | {SINES: tensors[SINES][:-1]}, SINES),
    ],
    ids=["sines", "zero", "bias", "shape"],
)
def test_what_is_no_weight_and_not_what_it_must_be_is_refused(change, name: str, marian_folder: Path, tmp_path: Path):
    folder = changed(marian_folder, tmp_path / "model", change)
    refused(folder, rf"{name} is no weight of this model, and yet it holds other numbers than it must by config.json")


def test_sines_survive_a_narrow_type(tmp_path: Path):
    export_folder(random_params(MARIAN), MARIAN, None, tmp_path / "model", dtype="bfloat16")
    assert load_file(tmp_path / "model" / "model.safetensors")[SINES].dtype == ml_dtypes.bfloat16


def test_copies_are_compared_with_what_they_copy(tmp_path: Path):
    config, table, head = OTHERS["separate"][0], "model.decoder.embed_tokens.weight", "lm_head.weight"
    export_folder(random_params(config), config, None, tmp_path / "model")
    changed(tmp_path / "model", tmp_path / "copied", lambda tensors: tensors | {head: tensors[table].copy()})
    assert import_folder(tmp_path / "copied")[0].resolved() == config.resolved()
    changed(tmp_path / "model", tmp_path / "other", lambda tensors: tensors | {head: -tensors[table]})
    refused(tmp_path / "other", f"config.json ties {head} to {table}, and yet they differ")


def test_a_copy_of_what_the_model_does_not_have_is_a_stranger(tmp_path: Path):
    config = OTHERS["bert"][0]
    export_folder(random_params(config), config, None, tmp_path / "model")
    rewrite(tmp_path / "model", with_tensor("cls.predictions.decoder.bias", np.zeros(300, np.float32)))
    refused(tmp_path / "model", "cls.predictions.decoder.bias are no part of BertForSequenceClassification")


def test_the_norms_of_the_first_release_are_read(tmp_path: Path):
    params = random_params(BERT)
    export_folder(params, BERT, None, tmp_path / "model")
    published = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def old(tensors):
        for new, former in published.items():
            tensors = {name.replace(new, former): array for name, array in tensors.items()}
        return tensors | {"cls.seq_relationship.bias": np.zeros(2, np.float32)}  # that of the head beside

    rewrite(tmp_path / "model", old)
    assert "bert.embeddings.LayerNorm.gamma" in load_file(tmp_path / "model" / "model.safetensors")
    _, reread, _ = import_folder(tmp_path / "model")
    assert all(np.array_equal(reread[name], params[name]) for name in params)


def test_a_bare_encoder_decoder_is_read(tmp_path: Path):
    config = OTHERS["bart"][0]
    params = random_params(config)
    export_folder(params, config, None, tmp_path / "model")

    def bare(tensors):
        kept = {name.removeprefix("model."): a for name, a in tensors.items() if name != "final_logits_bias"}
        return kept | {"encoder.embed_tokens.weight": kept["shared.weight"].copy()}

    rewrite(tmp_path / "model", bare)
    values = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(values | {"architectures": ["BartModel"]}))
    _, reread, _ = import_folder(tmp_path / "model")
    assert all(np.array_equal(reread[name], params[name]) for name in params)


def test_a_file_saved_without_the_head_is_read_with_its_buffers_and_copies(tmp_path: Path):
    golden = golden_folder("gpt2", tmp_path / "model", bos_token_id=..., dtype=..., torch_dtype="float32")

    def old(tensors):
        bare = {name.removeprefix("transformer."): array for name, array in tensors.items()}
        bare |= {f"h.{layer}.attn.bias": np.tril(np.ones((1, 1, 24, 24), np.bool_)) for layer in (0, 1)}
        return bare | {
            "h.0.attn.masked_bias": np.full(1, -1e4, np.float32),
            "lm_head.weight": bare["wte.weight"].copy(),
        }

    rewrite(tmp_path / "model", old)
    config, params, files = import_folder(tmp_path / "model")
    difference = np.abs(logits(config, params, golden["tokens"]) - golden["logits"]).max()
    assert difference <= 1e-5 * np.abs(golden["logits"]).max()
    assert json.loads(files["generation_config.json"]) == {"eos_token_id": 1}


def test_a_folder_of_mixed_types_is_read_exactly(tmp_path: Path):
    golden_folder("llama", tmp_path / "model")
    rewrite(
        tmp_path / "model",
        lambda tensors: {n: a.astype(ml_dtypes.bfloat16 if "mlp" in n else np.float16) for n, a in tensors.items()},
    )
    _, params, _ = import_folder(tmp_path / "model")
    assert {array.dtype.name for array in params.values()} == {"float32"}


def with_tensor(name: str, array: Any):
    return lambda tensors: tensors | {name: array}


WTE = "transformer.wte.weight"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: {n: a for n, a in t.items() if n != WTE}, f"the weights of {WTE} are missing"),
        (lambda t: {n: a for n, a in t.items() if ".0." not in n}, "h.0.ln_1.weight, .* and more are missing"),
        (with_tensor("transformer.h.2.ln_1.bias", np.zeros(16, np.float32)), "h.2.ln_1.bias are no part of GPT2LM"),
        (with_tensor(WTE, np.zeros((71, 16), np.float32)), r"wte.weight is \[71, 16\] instead of \[70, 16\]"),
        (with_tensor(WTE, np.full((70, 16), np.nan, np.float32)), "wte.weight holds values that are not finite"),
        (with_tensor(WTE, np.zeros((70, 16), np.int8)), "wte.weight is of type I8, not of F32, F16, BF16"),
        (with_tensor("lm_head.weight", np.zeros((70, 16), np.float32)), "and yet they differ"),
    ],
)
def test_tensors_that_are_not_the_models_are_refused(change, sentence: str, gpt2_folder: Path):
    rewrite(gpt2_folder, change)
    refused(gpt2_folder, sentence)


def test_an_untied_model_needs_its_head(tmp_path: Path):
    golden_folder("gpt2", tmp_path / "model", tie_word_embeddings=False)
    refused(tmp_path / "model", r"lm_head\.weight are missing")


def test_sizes_without_end_are_refused_at_once(marian_folder: Path, tmp_path: Path):
    golden_folder("gpt2", tmp_path / "model", n_layer=10**9, n_embd=10**9, n_head=1)
    refused(tmp_path / "model", "and more are missing, which config.json makes part of the model")
    folder = changed(marian_folder, tmp_path / "marian", lambda tensors: tensors)
    values = json.loads((folder / "config.json").read_text())
    endless = {"max_position_embeddings": 10**9, "d_model": 10**9, "vocab_size": 10**9, "decoder_vocab_size": 10**9}
    (folder / "config.json").write_text(json.dumps(values | endless))
    refused(folder, "config.json and the weights disagree")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{", "config.json is not valid JSON"),
        (b"[]", "config.json must hold an object"),
        (b'{"n_layer": 1, "n_layer": 2}', "the key 'n_layer' is there twice"),
        (b'{"n_layer": NaN}', "NaN is not a JSON value"),
        (b"\xff\xfe", "config.json is not valid JSON"),
        (b"[" * 100_000, "config.json is not valid JSON"),
        (b'{"architectures": ["XLNetModel"]}', "the architecture XLNetModel is not known; the nearest"),
        (b'{"architectures": ["GPT2LMHeadModel"], "model_type": "llama"}', "model_type=llama is not GPT2LMHeadModel's"),
    ],
)
def test_a_damaged_or_foreign_configuration_is_refused(content: bytes, sentence: str, gpt2_folder: Path):
    (gpt2_folder / "config.json").write_bytes(content)
    refused(gpt2_folder, sentence)


def header(text: bytes, size: int | None = None) -> bytes:
    return (len(text) if size is None else size).to_bytes(8, "little") + text


ENTRY = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not safetensors",
        header(b"{}", 10**15),
        header(b"{}", 1000),
        header(b"{]"),
        header(b'{"a":' + ENTRY + b"}"),
        header(b'{"a":' + ENTRY + b',"a":' + ENTRY + b"}") + bytes(4),
        header(b'{"a":' + ENTRY + b"}") + bytes(5),
        header(b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}'),
    ],
)
def test_damaged_weights_are_refused(content: bytes, gpt2_folder: Path):
    (gpt2_folder / "model.safetensors").write_bytes(content)
    refused(gpt2_folder, "model.safetensors is damaged or is not a safetensors file")


def test_a_truncated_file_is_refused(gpt2_folder: Path):
    file = gpt2_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    refused(gpt2_folder, "model.safetensors is damaged")


def test_a_folder_without_what_is_needed_is_refused(gpt2_folder: Path, tmp_path: Path):
    refused(tmp_path / "nowhere", "does not exist")
    refused(gpt2_folder / "config.json", "is not a folder")
    (gpt2_folder / "model.safetensors").unlink()
    refused(gpt2_folder, "neither model.safetensors nor model.safetensors.index.json is there")
    (gpt2_folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    refused(gpt2_folder, "the weights are in pytorch_model.bin, a pickle, .* save the model as safetensors")
    (gpt2_folder / "config.json").unlink()
    refused(gpt2_folder, "config.json is missing")


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("../secret.safetensors", "would lead out of the folder"),
        ("/etc/secret.safetensors", "would lead out of the folder"),
        ("inner/a.safetensors", "would lead out of the folder"),
        ("..\\secret.safetensors", "would lead out of the folder"),
        ("link.safetensors", "is a link out of the folder"),
        ("absent.safetensors", "absent.safetensors is missing"),
        ("weights.bin", "weights.bin is not a safetensors file"),
        (3, "weight_map must be an object"),
    ],
)
def test_an_index_that_leaves_the_folder_is_refused(file: Any, sentence: str, gpt2_folder: Path, tmp_path: Path):
    (gpt2_folder / "model.safetensors").rename(tmp_path / "secret.safetensors")
    os.symlink(tmp_path / "secret.safetensors", gpt2_folder / "link.safetensors")
    (gpt2_folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {WTE: file}}))
    refused(gpt2_folder, sentence)


def test_an_index_that_disagrees_with_its_files_is_refused(tmp_path: Path):
    export_folder(random_params(GPT2), GPT2, None, tmp_path / "model", shard_bytes=10_000)
    index = tmp_path / "model" / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    del values["weight_map"]["transformer.ln_f.bias"]
    index.write_text(json.dumps(values))
    refused(tmp_path / "model", r"the tensor transformer\.ln_f\.bias of model-.* is not named; copy")
    values["weight_map"] |= {
        "transformer.ln_f.bias": "model-00001-of-00004.safetensors",
        "x": values["weight_map"][WTE],
    }
    index.write_text(json.dumps(values))
    refused(tmp_path / "model", "the tensor .* is not in model-")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_link_out_of_the_folder_is_refused(name: str, gpt2_folder: Path, tmp_path: Path):
    outside = tmp_path / "outside"
    outside.write_bytes((gpt2_folder / name).read_bytes() if (gpt2_folder / name).exists() else b"{}")
    (gpt2_folder / name).unlink(missing_ok=True)
    os.symlink(outside, gpt2_folder / name)
    refused(gpt2_folder, f"{name} is a link out of the folder; copy the folder with its links followed")


def test_code_that_a_tokenizer_asks_for_is_refused(gpt2_folder: Path):
    (gpt2_folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["x.Y", null]}}')
    refused(gpt2_folder, "tokenizer_config.json: auto_map asks for code from the folder")


def test_a_folder_says_what_becomes_of_an_images_bytes(tmp_path: Path):
    folder = tmp_path / "vit"
    export_folder(random_params(VIT), VIT, None, folder)
    file = folder / "preprocessor_config.json"
    values = json.loads(file.read_text())
    assert values["size"] == {"height": 32, "width": 32}
    file.write_text(json.dumps(values | {"image_std": [0.2, 0.2, 0.2]}))
    with pytest.raises(ValueError, match=r"preprocessor_config.json: image_std=.* is not \[0.5, 0.5, 0.5\], by which"):
        import_folder(folder)
