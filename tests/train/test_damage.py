"""The short form of tests/drill/damage.py: every kind of damage twice, and what ends a run."""

import importlib.util
from pathlib import Path

DAMAGE = Path(__file__).resolve().parents[1] / "drill" / "damage.py"


def test_damage_is_found_named_and_passed_over(tmp_path: Path):
    spec = importlib.util.spec_from_file_location("damage", DAMAGE)
    assert spec is not None
    assert spec.loader is not None
    damage = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(damage)
    counts = damage.drill(tmp_path, times=2 * len(damage.DAMAGES), seed=0)
    assert sum(counts.values()) == 2 * len(damage.DAMAGES) + 3
    assert not damage.wrong(counts)
