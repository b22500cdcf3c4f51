"""Errors are a small documented tree, each with the exit code of its kind."""

from __future__ import annotations

import inspect
import re

import pytest

from runqueue import errors

EXIT_CODES = {  # design.md, section 7
    "RunqueueError": 1,
    "InvalidRun": 2,
    "RunNotFound": 3,
    "SessionNotFound": 3,
    "RunnerNotFound": 3,
    "StaleClaim": 4,
    "IllegalMove": 4,
    "RunnerConflict": 4,
    "SessionConflict": 4,
    "WaitTimeout": 5,
    "ConfigurationError": 78,
    "StorageError": 1,
    "StorageBusy": 75,
    "StorageFull": 75,
    "StorageLost": 75,
    "StorageDamaged": 78,
}


def raised() -> dict[str, type[errors.RunqueueError]]:
    """Every error class of the module."""
    return {
        name: value
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.RunqueueError)
    }


def documented() -> dict[str, str | None]:
    """Each error of the docstring's tree, and its parent there."""
    parents: list[str] = []
    tree: dict[str, str | None] = {}
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^    ([│ ]*(?:[├└]── )?)(\w+)(?:  +\S.*)?$", line)
        if match is None or ("Error" not in line and not match[1]):
            continue
        depth = len(match[1]) // 4
        parents[depth:] = [match[2]]
        tree[match[2]] = parents[depth - 1] if depth else None
    return tree


def test_the_tree_of_the_docstring_is_the_tree_of_the_classes():
    """Nothing is raised that is not documented, and nothing documented that does not exist."""
    tree = {
        name: next(
            (base.__name__ for base in error.__bases__ if issubclass(base, errors.RunqueueError)),
            None,
        )
        for name, error in raised().items()
    }
    assert documented() == tree


def test_exit_codes_are_those_of_the_design():
    """Scripts are written against them."""
    assert {name: error.exit_code for name, error in raised().items()} == EXIT_CODES


@pytest.mark.parametrize("name", EXIT_CODES)
def test_every_error_has_a_sentence_of_its_own(name):
    """The class says what it means, in one sentence that ends."""
    error = raised()[name]
    assert "__doc__" in vars(error)
    assert re.fullmatch(r"[A-Z].*\.", (error.__doc__ or "").strip(), re.DOTALL)


def test_errors_are_also_what_python_calls_their_kind():
    """Code that knows nothing of runqueue can still tell them apart."""
    assert issubclass(errors.InvalidRun, ValueError)
    assert issubclass(errors.WaitTimeout, TimeoutError)
    for name in ("RunNotFound", "SessionNotFound", "RunnerNotFound"):
        assert issubclass(raised()[name], LookupError)


def test_a_storage_error_is_retryable_exactly_when_its_exit_code_says_so():
    """75 tells a service manager to try again; so does the attribute."""
    for error in raised().values():
        if issubclass(error, errors.StorageError):
            assert error.retryable == (error.exit_code == 75)


@pytest.mark.parametrize("name", EXIT_CODES)
def test_an_error_says_what_it_was_given_and_nothing_else(name):
    """LookupError and TimeoutError have habits of their own with messages."""
    assert str(raised()[name]("one sentence")) == "one sentence"
