"""The training step of large models, compiled for TPU slices that are not here, by the TPU's own compiler.

    python tests/benchmarks/tpu.py                     # all settings, some minutes each
    python tests/benchmarks/tpu.py --only 70b --hlo runs/70b.hlo.gz

Needs libtpu (the extra `tpu`), and no TPU. What is shown is what the compiler says of its program, per device: nothing
is measured. Wire bytes and FLOPs can be counted in the program, which --hlo keeps.
"""

import argparse
import gzip
import os
import time
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies

from data.dataset import DataConfig
from model.presets import PRESETS
from train.config import RunConfig, resolve, validate
from train.console import Console
from train.mesh import MeshConfig, make_mesh
from train.objectives.causal_lm import CausalLMConfig
from train.program import Program

# Slices whose dimensions are multiples of 4 are closed to a torus. Without `wrap` the compiler takes them for open,
# and makes of every gather a sum of twice the bytes.
_V5P = {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1), "wrap": (True, True, True)}
SLICES: dict[str, dict[str, Any]] = {
    "v5e-256": {"topology_name": "v5e:16x16", "wrap": (True, True, False)},
    "v6e-256": {"topology_name": "v6e:16x16", "wrap": (True, True, False)},
    "v5p-128": {"topology_name": "v5:4x4x4", **_V5P},
    "v5p-1024": {"topology_name": "v5:8x8x8", **_V5P},
}


class Setting(NamedTuple):
    """A model on a slice, its weights fully sharded; `rows` are those of one device."""

    model: str
    slice: str
    rows: int
    length: int
    remat: str
    loss_chunks: int = 1


SETTINGS = {
    "7b v5e full": Setting("llama2-7b", "v5e-256", 4, 2048, "full"),
    "7b v5e qkv": Setting("llama2-7b", "v5e-256", 4, 2048, "qkv", 4),
    "7b v5p dots": Setting("llama2-7b", "v5p-128", 4, 4096, "dots", 4),
    "70b v5p projections": Setting("llama2-70b", "v5p-1024", 2, 4096, "projections", 4),
    "70b v6e offload": Setting("llama2-70b", "v6e-256", 2, 4096, "offload", 4),
}


def main() -> None:
    """Compiles and shows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", default="", metavar="NAME", help=f"those whose names contain it: {', '.join(SETTINGS)}"
    )
    parser.add_argument("--layers", type=int, help="so many layers instead of the model's")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="for the compiler")
    parser.add_argument("--hlo", metavar="FILE", help="where the compiled program is written, gzipped")
    options = parser.parse_args()
    # Only compiles: asks no other machine, and minds no other process.
    os.environ |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1"}
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    rows = []
    for name, setting in SETTINGS.items():
        if options.only in name:
            compiled, seconds = compile_step(setting, options.layers, tuple(options.option))
            memory = compiled.memory_analysis()
            sizes = (
                memory.peak_memory_in_bytes,
                memory.host_temp_size_in_bytes,
                memory.argument_size_in_bytes,
                memory.generated_code_size_in_bytes,
            )
            rows.append((name, *(f"{size / 2**30:.2f}" for size in sizes), f"{seconds:.0f}"))
            if options.hlo:
                with gzip.open(options.hlo, "wt") as file:
                    file.write(compiled.as_text())
    Console().table("per device", ("setting", "peak GiB", "host GiB", "state GiB", "code GiB", "compile, CPU s"), rows)


def compile_step(setting: Setting, layers: int | None, compiler_options: tuple[str, ...]) -> tuple[Any, float]:
    """The compiled step, and the CPU seconds that it took."""
    devices = topologies.get_topology_desc(platform="tpu", **SLICES[setting.slice]).devices
    model = replace(PRESETS[setting.model], remat=setting.remat)
    config = resolve(
        RunConfig(
            model=replace(model, num_layers=layers) if layers else model,
            data=DataConfig(max_length=setting.length),
            objective=CausalLMConfig(loss_chunks=setting.loss_chunks),
            mesh=MeshConfig(data=1, fsdp=-1),
            batch_size=setting.rows * len(devices),
            precision="bfloat16",
            compiler_options=compiler_options,
        )
    )
    validate(config)
    row = dict.fromkeys(("tokens", "targets", "segments", "positions"), np.zeros(setting.length, np.int32))
    program = Program.of(config, make_mesh(config.mesh, devices))
    begun = time.process_time()
    compiled = program.compile_step({**row, "scored": np.zeros(setting.length, bool)})
    return compiled, time.process_time() - begun


if __name__ == "__main__":
    main()
