"""The promises name tests that exist, and say what they do not say."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
PROMISES = re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:-1]


def test_every_test_that_is_named_exists() -> None:
    """A promise whose test was renamed away would be a promise that nobody looks at."""
    named = re.findall(r"`(tests/[^`]+)::(\w+)`", TEXT)
    assert len(named) > 30
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        classes = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        assert name in functions | classes, f"{path} has no {name}"


def test_every_promise_says_what_it_does_not_say_and_names_a_test() -> None:
    """Twelve of them, in order."""
    assert [promise.partition(".")[0] for promise in PROMISES] == [str(n) for n in range(1, 13)]
    for promise in PROMISES:
        assert "*It does not say*" in promise, promise
        assert "- `tests/" in promise, promise
