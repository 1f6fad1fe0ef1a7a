"""The user's own code, named module:function: imported, called, and what goes wrong in it said in a sentence."""

import importlib
import os
import sys
from typing import Any


def call_own(path: str, what: str) -> Any:
    """What `path`, module:function or module:Class, gives when it is called without arguments.

    The module may lie in the working directory. `what` says to people what is looked for, such as "recipe".

    Raises:
        ValueError: there is nothing of that name to call, or it fails.
    """
    module, _, function = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # behind everything else, so that the user's data/ folder is not our package
    try:
        own = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the {what} {path} cannot be found: {error}; correct the name, or install what is missing"
        ) from error
    except Exception as error:  # the user's module may raise anything
        raise ValueError(f"the {what} {path} cannot be imported ({failure(error)}); mend it") from error
    if not hasattr(own, function):
        raise ValueError(
            f"the {what} {path} cannot be found: module {module!r} has no attribute {function!r}; name a function or a "
            f"class of it"
        )
    make = getattr(own, function)
    if not callable(make):
        raise ValueError(f"{path} is {type(make).__name__} and cannot be called; name a function or a class")
    try:
        return make()
    except Exception as error:  # and so may the user's function
        raise ValueError(f"the {what} {path} fails ({failure(error)}); mend it") from error


def failure(error: Exception) -> str:
    """What an error of somebody else's code says, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
