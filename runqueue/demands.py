"""What a run demands of its runner, and which of it a runner does not meet.

Demands are a JSON object. `hostname`, `project_dir` and `executor_type` must equal the runner's;
`tags` must be a subset of the runner's; any other key is compared with the runner's property of
that name: a scalar must be equal, a list must be a subset. `null`, `""` and `[]` demand nothing.
All functions here are pure: the claim, `why` and the error of an expired run use the same ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from runqueue.errors import InvalidRun

PLACE: Final = ("hostname", "project_dir", "executor_type")
"""The demands that say where a run must execute; a session's home is made of them."""

MAX_BYTES: Final = 2_000
"""Limit of the JSON text that a caller gives."""
MAX_PLACE: Final = 600
"""Limit of a runner's place, as JSON: it is added to the demands of its sessions' runs."""
MAX_MERGED: Final = MAX_BYTES + MAX_PLACE
"""Limit of both together: they are an index key, and PostgreSQL's index rows end at 2,704 bytes."""
MAX_TAGS: Final = 64
MAX_NAME: Final = 128
"""Limit of a key, a tag or one item of a list, in characters."""

Scalar = str | int | float | bool
Demand = Scalar | list[Scalar]
Demands = dict[str, Demand]


@dataclass(frozen=True)
class Capabilities:
    """What a runner has to offer."""

    hostname: str | None = None
    project_dir: str | None = None
    executor_type: str | None = None
    tags: frozenset[str] = frozenset()
    properties: Mapping[str, Any] = field(default_factory=dict)

    def of(self, key: str) -> Any:
        """Return what the runner has under a demand's key, None for nothing."""
        if key == "tags":
            return sorted(self.tags)
        return getattr(self, key) if key in PLACE else self.properties.get(key)


class Unmet(NamedTuple):
    """One demand that a runner does not meet."""

    key: str
    wanted: Any
    has: Any

    def __str__(self) -> str:
        wanted = json.dumps(self.wanted, ensure_ascii=False)
        if self.has is None or self.has == []:
            return f"{self.key} {wanted} (has none)"
        return f"{self.key} {wanted} (has {json.dumps(self.has, ensure_ascii=False)})"


def validate(demands: Mapping[str, Any] | None) -> Demands:
    """Return the demands that ask for something, in canonical form.

    Raises InvalidRun, naming the key, for what cannot be matched or is over a limit.
    """
    if demands is None:
        return {}
    if not isinstance(demands, Mapping):
        raise InvalidRun(f"demands must be an object, not {type(demands).__name__}")
    checked: Demands = {}
    for key, value in demands.items():
        if not isinstance(key, str) or not key:
            raise InvalidRun("every demand needs a name that is a non-empty string")
        check_name(key, "the name of a demand")
        if isinstance(value, (set, frozenset, tuple)):
            value = list(value)
        if _asks_nothing(value):
            continue
        checked[key] = _validate_value(key, value)
    if len(canonical(checked).encode()) > MAX_BYTES:
        raise InvalidRun(f"the demands are over the limit of {MAX_BYTES:,} bytes")
    return checked


def _validate_value(key: str, value: Any) -> Demand:
    if key in PLACE and not isinstance(value, str):
        raise InvalidRun(f"the demand {key} must be a string, not {type(value).__name__}")
    if key == "tags":
        if not isinstance(value, list):
            raise InvalidRun(f"the demand tags must be a list, not {type(value).__name__}")
        if len(value) > MAX_TAGS:
            raise InvalidRun(f"{len(value)} tags are over the limit of {MAX_TAGS}")
        if not all(isinstance(tag, str) and tag for tag in value):
            raise InvalidRun("every tag must be a non-empty string")
    if isinstance(value, list):
        return _together(_scalar(key, item) for item in value)
    # A directory is a path, not a name; the limit of the whole text holds for it.
    return value if key == "project_dir" and check_text(value, key) else _scalar(key, value)


def _scalar(key: str, value: Any) -> Scalar:
    if isinstance(value, str):
        check_name(value, f"the demand {key}")
        return value
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise InvalidRun(
        f"the demand {key} must be a string, a finite number, a boolean or a list of these"
    )


def _together(values: Iterable[Any]) -> list[Any]:
    """The values, each once, in one order; by their JSON, for to Python 1 and True are one."""
    by_text = {json.dumps(value): value for value in values}
    return [by_text[text] for text in sorted(by_text)]


def _asks_nothing(value: Any) -> bool:
    return value is None or value == "" or value == []


def check_name(value: str, what: str) -> None:
    """Raise InvalidRun when a name is too long or cannot be stored as text."""
    check_text(value, what)
    if len(value) > MAX_NAME:
        raise InvalidRun(f"{what} is over the limit of {MAX_NAME} characters")


def check_text(value: str, what: str) -> bool:
    """Raise InvalidRun for characters that not every database can store; return True."""
    if "\0" in value:
        raise InvalidRun(f"{what} holds a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRun(f"{what} holds a lone surrogate, which is not text") from None
    return True


def canonical(demands: Mapping[str, Any]) -> str:
    """Return the one text of these demands; equal demands have equal texts."""
    return json.dumps(demands, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def parse(text: str | None) -> dict[str, Any]:
    """Return stored demands, also those written by others.

    Raises ValueError for a text that is not a JSON object.
    """
    if not text:
        return {}
    try:
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError("demands are not a JSON object")
        canonical(value).encode()
    except RecursionError:
        raise ValueError("demands are nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("demands hold a lone surrogate, which is not text") from None
    return value


def parse_list(text: str | None) -> list[str]:
    """Return a stored list of tags.

    Raises ValueError for a text that is not a JSON list of strings.
    """
    value = json.loads(text or "[]")
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("tags are not a JSON list of strings")
    return value


def merge(first: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Return both demands together: `later` may add to `first`, never override or relax it.

    Raises InvalidRun when the two contradict each other, for no runner could ever meet both.
    """
    merged = dict(first)
    for key, value in later.items():
        if _asks_nothing(value):
            continue
        if (
            key not in merged
            or _asks_nothing(merged[key])
            or json.dumps(merged[key]) == json.dumps(value)
        ):
            merged[key] = value
        elif isinstance(merged[key], list) and isinstance(value, list):
            merged[key] = _together([*merged[key], *value])
        else:
            raise InvalidRun(
                f"the demand {key} {json.dumps(value)} contradicts {json.dumps(merged[key])}, "
                "which is demanded already"
            )
    return merged


def both(first: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Return both demands together, also where they contradict each other.

    Of two values that no runner can have at once a list is made, which none can satisfy either:
    the run then waits for nobody, and `why` shows the two.
    """
    joined = {}
    for key in {**first, **later}:
        values = [source[key] for source in (first, later) if not _asks_nothing(source.get(key))]
        lists = [value if isinstance(value, list) else [value] for value in values]
        flat = [item for items in lists for item in items]
        is_list = any(isinstance(value, list) for value in values)
        together = _together(flat)
        joined[key] = together if is_list or len(together) > 1 else together[0] if flat else None
    return joined


def unmet(demands: Mapping[str, Any], runner: Capabilities) -> list[Unmet]:
    """Return the demands that a runner does not meet; an empty list means that it may claim."""
    missing = []
    for key, wanted in demands.items():
        if _asks_nothing(wanted):
            continue
        has = runner.of(key)
        if not _is_met(key, wanted, has):
            missing.append(Unmet(key, wanted, has))
    return missing


def _is_met(key: str, wanted: Any, has: Any) -> bool:
    if has is None:
        return False
    if key == "tags" and not isinstance(wanted, list):
        wanted = [wanted]
    if isinstance(wanted, list):
        return _is_subset(wanted, has if isinstance(has, list) else [has])
    return _is_equal(wanted, has)


def _is_subset(wanted: Iterable[Any], has: list[Any]) -> bool:
    return all(any(_is_equal(one, other) for other in has) for one in wanted)


def _is_equal(one: Any, other: Any) -> bool:
    # The command line knows only strings: --demand gpus=2 must meet a property given as 2.
    if isinstance(one, str) != isinstance(other, str):
        return _as_text(one) == _as_text(other)
    if isinstance(one, bool) != isinstance(other, bool):
        return False  # Python's True == 1 is not JSON's
    return bool(one == other)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
