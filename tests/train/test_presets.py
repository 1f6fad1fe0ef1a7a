"""Every recipe divides on the mesh that it names, on up to 512 devices: by arithmetic, without one."""

import json
from functools import cache
from typing import Any

import pytest
from jax.sharding import AbstractMesh

from model.presets import PRESETS
from model.sharding import partition_spec
from train.config import resolve, to_json, validate
from train.mesh import check_batch
from train.recipes import RECIPES, find_recipe, needs
from train.state import blueprint

declared = cache(lambda model: blueprint(model).declared)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_divide_on_the_meshes_they_name(name):
    config = find_recipe(name)
    counts = [2**power for power in range(10) if config.batch_size % 2**power == 0]
    assert counts[-1] >= (256 if config.mesh.fsdp == -1 else 32 if name in PRESETS else 4)
    for devices in counts:
        shape = config.mesh.shape(devices)
        mesh = AbstractMesh(tuple(shape.values()), tuple(shape))
        for length in config.data.lengths or (0,):
            check_batch(mesh, config.batch_size, config.micro_batches, length)
        for declaration in declared(config.model).values():
            partition_spec(declaration.axes, declaration.shape, mesh)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_whole_runs(name):
    config = resolve(find_recipe(name))
    assert config.name == name
    if not needs(config):
        validate(config)
    model: Any = config.model
    assert all(length <= model.max_length for length in config.data.lengths)


def test_code_that_a_file_names_is_not_run(tmp_path):
    path = tmp_path / "config.json"
    for data in ({"path": "os:getcwd"}, {"mixture": ["a=1:os:getcwd"]}, {"valid_path": "os:getcwd"}):
        path.write_text(json.dumps(to_json(find_recipe("smoke")) | {"data": data}))
        with pytest.raises(ValueError, match=r"data.path names code, os:getcwd, and what a file names is not run"):
            find_recipe(str(path))
