"""YAML files of keys and values, whose plain values mean what they look like."""

import re
from pathlib import Path

import yaml

from pretraining.files import read_text

# PyYAML's own, and what it raises for values that a tag says to be something else, or that are
# nested too deeply.
_NOT_YAML = (yaml.YAMLError, KeyError, AttributeError, ValueError, RecursionError)


class PlainLoader(yaml.SafeLoader):
    """YAML 1.2's plain scalars, and each key once.

    YAML 1.1, which PyYAML reads by itself, takes `no` and `off` for False, `1e-3` for text, `1:30`
    for 90 and `010` for 8. Here they are text, a number, text, and 10.
    """

    yaml_implicit_resolvers = {}

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue  # YAML has its own rules for both
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands there twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["", *"~nN"]),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][\d_]*)|0x[\da-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d+)([eE][-+]?\d+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),
):
    PlainLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), list(_first)
    )


def read_yaml(file: Path, such_as: str = "key: value") -> dict:
    """The keys and values of a YAML file; none of an empty one.

    Args:
        such_as: a line that the file may hold, for the message if it holds something else.

    Raises:
        OSError, ValueError: if it cannot be read or is something else; the message names the file.
    """
    try:
        values = yaml.load(read_text(file), Loader=PlainLoader)
    except _NOT_YAML as error:
        raise ValueError(f"{file}: not YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{file}: keys and values expected, such as `{such_as}`.")
    return values


def set_key(values: dict, override: str) -> None:
    """Sets a key of a file, as `stage1.training.max_steps=100` on the command line does.

    Raises:
        ValueError: if it is of another form, its value is not YAML, or a key before a dot holds no
            keys.
    """
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ValueError(f"override {override!r} is not of the form key.key=value.")
    *parents, last = key.split(".")
    for parent in parents:
        if values.get(parent) is None:
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise ValueError(f"override {override!r}: {parent} is not a group of keys.")
    try:
        values[last] = yaml.load(value, Loader=PlainLoader)
    except _NOT_YAML as error:
        raise ValueError(f"override {override!r}: not YAML: {error}") from error
