"""YAML files: keys and values whose plain values mean what they look like, or a message."""

import pytest

from pretraining.plain_yaml import read_yaml


def test_plain_values_mean_what_they_look_like(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("a: [no, off, 1:30, 2026-11-27]\nb: [1e-3, 010, 0x1f, true]\nc:\n")
    assert read_yaml(file) == {
        "a": ["no", "off", "1:30", "2026-11-27"],
        "b": [0.001, 10, 31, True],
        "c": None,
    }


@pytest.mark.parametrize("content", ["", "# news: 2\n"])
def test_an_empty_file_has_no_keys(tmp_path, content):
    (tmp_path / "a.yaml").write_text(content)
    assert read_yaml(tmp_path / "a.yaml") == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- news", "keys and values expected, such as `news: 2`"),
        ("news", "keys and values expected"),
        ("news: [", "not YAML"),
        ("news: !!bool perhaps", "not YAML"),
        (f"news: {'[' * 3_000}", "not YAML"),
        ("[news]: 2", "not YAML: .*unhashable key"),
        ("news: 1\nnews: 2", "not YAML: .*'news' stands there twice"),
    ],
)
def test_a_file_of_something_else_is_named(tmp_path, content, message):
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(ValueError, match=rf"(?s)a\.yaml: {message}"):
        read_yaml(tmp_path / "a.yaml", "news: 2")
