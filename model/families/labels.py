"""The names of classes in a config.json: `id2label`, and `label2id`, which says the same the other way round.

Without names transformers writes LABEL_0, LABEL_1 and so on, which are no names here.
"""

from collections import Counter
from typing import Any

from model.families.keys import Keys


def to_values(num_classes: int, classes: tuple[str, ...]) -> dict[str, Any]:
    """The keys of a classifier's config.json."""
    names = classes or _unnamed(num_classes)
    return {"id2label": {str(i): name for i, name in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}


def read(keys: Keys) -> dict[str, Any]:
    """The fields `num_classes` and `classes` of a classifier.

    A name that several classes have, as two have "crane" in ImageNet, is followed by the number of the class. Raises
    ValueError where the classes are not numbered from 0.
    """
    labels = keys.inside("id2label")
    if labels is None:
        return {"num_classes": keys.integer("num_labels", 2), "classes": ()}
    names = tuple(labels.text(str(i)) for i in range(len(labels)))
    counts = Counter(names)
    classes = tuple(f"{name} ({i})" if counts[name] > 1 else name for i, name in enumerate(names))
    return {"num_classes": len(names), "classes": () if classes == _unnamed(len(names)) else classes}


def _unnamed(num_classes: int) -> tuple[str, ...]:
    return tuple(f"LABEL_{i}" for i in range(num_classes))
