"""Demands: one pure vocabulary for the claim, `why` and the error of an expired run."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from runqueue import demands as d
from runqueue.demands import Capabilities
from runqueue.errors import InvalidRun

examples = settings(derandomize=True, deadline=None, max_examples=40)

# Few different values, so that demands and capabilities meet often.
WORDS = st.sampled_from(["a", "é", "1", "true"])
SCALARS = st.sampled_from(["a", "1", 1, True, 0.5])
LISTS = st.lists(SCALARS, max_size=3)
PLACES = st.fixed_dictionaries({}, optional={key: st.sampled_from("ab") for key in d.PLACE})
TAGS = st.fixed_dictionaries({}, optional={"tags": st.lists(WORDS, max_size=3)})
OTHERS = st.dictionaries(st.sampled_from(["gpus", "k"]), SCALARS | LISTS)
NOTHING = st.dictionaries(st.sampled_from(["n", "m"]), st.sampled_from([None, "", []]))


def _together(*parts: dict[str, object]) -> dict[str, object]:
    return {key: value for part in parts for key, value in part.items()}


DEMANDS = st.builds(_together, PLACES, TAGS, OTHERS, NOTHING)
RUNNERS = st.builds(
    Capabilities,
    hostname=st.sampled_from(["a", "b", None]),
    project_dir=st.sampled_from(["a", "b", None]),
    executor_type=st.sampled_from(["a", "b", None]),
    tags=st.frozensets(WORDS),
    properties=OTHERS,
)


def meets(runner: Capabilities, wanted: dict[str, object]) -> bool:
    return not d.unmet(wanted, runner)


# --- validate


@pytest.mark.parametrize("nothing", [None, {}, {"a": None}, {"a": ""}, {"tags": []}])
def test_nothing_demanded_is_no_demands(nothing):
    """null, an empty string and an empty list demand nothing."""
    assert d.validate(nothing) == {}


@pytest.mark.parametrize("empty", [(), set(), frozenset()])
@pytest.mark.parametrize("key", ["tags", "gpus"])
def test_an_empty_tuple_or_set_demands_nothing_either(key, empty):
    """Else a run with `tags=()` would have demands of its own, and expire after 300 s."""
    assert d.validate({key: empty}) == {}


def test_lists_become_sorted_without_doubles():
    """Order and repetition mean nothing, and one meaning has one text."""
    assert d.validate({"tags": ["b", "a", "b"]}) == {"tags": ["a", "b"]}
    assert d.validate({"tags": {"b", "a"}}) == d.validate({"tags": ("a", "b")})


@pytest.mark.parametrize(
    ("bad", "names"),
    [
        ("tags=gpu", "object"),
        (["gpu"], "object"),
        ({1: "a"}, "name"),
        ({"": "a"}, "name"),
        ({"hostname": 1}, "hostname"),
        ({"hostname": ["a"]}, "hostname"),
        ({"project_dir": True}, "project_dir"),
        ({"executor_type": {"a": 1}}, "executor_type"),
        ({"tags": "gpu"}, "tags"),
        ({"tags": 1}, "tags"),
        ({"tags": ["gpu", 1]}, "tag"),
        ({"tags": [""]}, "tag"),
        ({"tags": [f"t{n}" for n in range(d.MAX_TAGS + 1)]}, "65 tags"),
        ({"tags": ["x" * (d.MAX_NAME + 1)]}, "tags"),
        ({"x" * (d.MAX_NAME + 1): 1}, "name of a demand"),
        ({"gpus": {"count": 2}}, "gpus"),
        ({"gpus": [[1]]}, "gpus"),
        ({"gpus": [None]}, "gpus"),
        ({"gpus": float("nan")}, "gpus"),
        ({"gpus": float("inf")}, "gpus"),
        ({"gpus": 2**63}, "gpus"),
        ({"gpus": b"2"}, "gpus"),
        ({"gpus": "a\0b"}, "NUL"),
        ({"a\0b": "gpus"}, "NUL"),
        ({"gpus": "\ud800"}, "surrogate"),
        ({"\ud800": "gpus"}, "surrogate"),
        ({"project_dir": "\ud800"}, "surrogate"),
        ({"project_dir": "x" * d.MAX_BYTES}, "bytes"),
        ({"project_dir": "é" * (d.MAX_BYTES // 2)}, "bytes"),
    ],
)
def test_what_cannot_be_matched_or_stored_is_refused_by_name(bad, names):
    """One short sentence of one line that says which demand it is."""
    with pytest.raises(InvalidRun, match=names) as refusal:
        d.validate(bad)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 300
    str(refusal.value).encode()


def test_a_long_directory_is_a_path_and_not_a_name():
    """The limit of names does not hold for it."""
    path = "/srv/" + "x" * 1000
    assert d.validate({"project_dir": path}) == {"project_dir": path}


@examples
@given(DEMANDS)
def test_validate_is_idempotent(wanted):
    """What was checked once passes again, unchanged, to the character."""
    once = d.validate(wanted)
    assert d.canonical(d.validate(once)) == d.canonical(once)


@examples
@given(DEMANDS, RUNNERS)
def test_validate_does_not_change_what_is_demanded(wanted, runner):
    """A runner meets the canonical form exactly when it meets what the caller wrote."""
    assert meets(runner, d.validate(wanted)) == meets(runner, wanted)


@pytest.mark.parametrize("value", [[1, True], [True, 1], [0, False], [False, 0]])
def test_a_boolean_and_a_number_in_one_list_are_two_demands(value):
    """Python's True == 1 is not JSON's, in a list as outside of one."""
    kept = d.validate({"k": value})["k"]
    assert sorted(map(json.dumps, kept)) == sorted(map(json.dumps, value))


# --- canonical and parse


@examples
@given(DEMANDS, st.randoms(use_true_random=False))
def test_canonical_text_does_not_depend_on_the_order_of_keys_and_lists(wanted, order):
    """Equal demands are one text, and so one seek of a claim."""
    shuffled = [
        (key, order.sample(value, len(value)) if isinstance(value, list) else value)
        for key, value in wanted.items()
    ]
    order.shuffle(shuffled)
    assert d.canonical(d.validate(dict(shuffled))) == d.canonical(d.validate(wanted))


@examples
@given(DEMANDS)
def test_canonical_text_is_json_that_parses_to_the_same(wanted):
    """Nothing is lost on the way through the database."""
    checked = d.validate(wanted)
    assert d.parse(d.canonical(checked)) == checked


def test_canonical_text_is_short_and_readable():
    """No spaces, no escapes: people read it in SQL."""
    assert d.canonical({"b": ["é"], "a": 1}) == '{"a":1,"b":["é"]}'


@pytest.mark.parametrize("text", [None, "", "{}"])
def test_no_text_and_an_empty_object_are_no_demands(text):
    """NULL is the usual case."""
    assert d.parse(text) == {}


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "1",
        "null",
        '"a"',
        "{",
        "gpu",
        "{'a': 1}",
        '{"a":' * 100000,
        "[" * 100000,
        '{"n":' + "1" * 5000 + "}",
    ],
)
def test_a_text_that_is_no_object_is_a_value_error(text):
    """A row that somebody wrote by hand must not end a claim loop or a sweep."""
    with pytest.raises(ValueError, match=r"."):
        d.parse(text)


@pytest.mark.parametrize("text", [r'{"\ud800":1}', r'{"k":"\udc00"}', r'{"tags":["\ud800"]}'])
def test_demands_with_half_a_character_are_a_value_error(text):
    """Such JSON passes the database's CHECK, but no error or merged demand with it can be stored.

    A sweep that wants to write why the run expired, and the start of a session that gives the
    run its home, would fail on it again and again.
    """
    with pytest.raises(ValueError, match=r"."):
        d.parse(text)


@pytest.mark.parametrize("text", ["{}", "1", '"gpu"', '["gpu", 1]', "[null]", "["])
def test_tags_that_are_no_list_of_strings_are_a_value_error(text):
    """Tags of a runner that somebody wrote by hand."""
    with pytest.raises(ValueError, match=r"."):
        d.parse_list(text)


def test_tags_are_read_from_json():
    """No text is no tags."""
    assert d.parse_list(None) == d.parse_list("") == d.parse_list("[]") == []
    assert d.parse_list('["a", "b"]') == ["a", "b"]


# --- merge


@examples
@given(DEMANDS, DEMANDS, RUNNERS)
def test_merge_is_additive(first, later, runner):
    """Whatever meets the merged demands meets both: nothing is overridden or relaxed."""
    first, later = d.validate(first), d.validate(later)
    try:
        merged = d.merge(first, later)
    except InvalidRun:
        assume(False)
    assert not meets(runner, merged) or (meets(runner, first) and meets(runner, later))


@examples
@given(DEMANDS, DEMANDS, RUNNERS)
def test_merge_demands_no_more_than_both(first, later, runner):
    """A runner that meets both meets the merged demands: nothing is invented."""
    first, later = d.validate(first), d.validate(later)
    try:
        merged = d.merge(first, later)
    except InvalidRun:
        assume(False)
    assert meets(runner, merged) or not (meets(runner, first) and meets(runner, later))


@examples
@given(DEMANDS)
def test_merge_with_nothing_or_with_itself_changes_nothing(wanted):
    """Merging twice is harmless."""
    checked = d.validate(wanted)
    text = d.canonical(checked)
    assert d.canonical(d.merge(checked, {})) == text
    assert d.canonical(d.merge({}, checked)) == text
    assert d.canonical(d.merge(checked, checked)) == text


@examples
@given(DEMANDS, DEMANDS)
def test_merge_does_not_change_what_it_is_given(first, later):
    """Both are somebody else's."""
    before = json.dumps([first, later])
    with contextlib.suppress(InvalidRun):
        d.merge(first, later)
    assert json.dumps([first, later]) == before


@pytest.mark.parametrize("nothing", [None, "", []])
@pytest.mark.parametrize("wanted", ["h", ["a"], 1])
def test_merging_with_a_demand_that_demands_nothing_changes_nothing(wanted, nothing):
    """`{"hostname": null}`, written by others, does not contradict the session's home."""
    assert d.merge({"k": wanted}, {"k": nothing}) == {"k": wanted}
    assert d.merge({"k": nothing}, {"k": wanted}) == {"k": wanted}


def test_lists_are_united_and_other_keys_added():
    """A later source may add."""
    assert d.merge({"tags": ["b"], "hostname": "h"}, {"tags": ["a"], "gpus": 2}) == {
        "tags": ["a", "b"],
        "hostname": "h",
        "gpus": 2,
    }


@pytest.mark.parametrize(
    ("first", "later"),
    [
        ({"hostname": "a"}, {"hostname": "b"}),
        ({"gpus": 1}, {"gpus": 2}),
        ({"gpus": 1}, {"gpus": True}),
        ({"gpus": True}, {"gpus": 1}),
        ({"gpus": 0}, {"gpus": False}),
    ],
)
def test_a_contradiction_is_refused_by_name(first, later):
    """No runner could ever meet both; better said now than by an expiry."""
    with pytest.raises(InvalidRun, match=f"the demand {next(iter(first))} .* contradicts"):
        d.merge(first, later)


def test_a_boolean_and_a_number_are_both_kept_when_lists_are_united():
    """1 and true are two demands."""
    merged = d.merge({"k": [1]}, {"k": [True]})["k"]
    assert sorted(map(json.dumps, merged)) == ["1", "true"]


# --- unmet


@examples
@given(RUNNERS)
def test_a_runner_meets_its_own_capabilities(runner):
    """Whatever it offers, demanding exactly that is met."""
    own = {key: runner.of(key) for key in (*d.PLACE, "tags", *runner.properties)}
    assert d.unmet(own, runner) == []


@examples
@given(st.lists(WORDS), st.lists(WORDS))
def test_tags_are_met_exactly_when_they_are_a_subset(wanted, tags):
    """Order and repetition do not matter; an empty list demands nothing."""
    runner = Capabilities(tags=frozenset(tags))
    assert meets(runner, {"tags": wanted}) == (set(wanted) <= set(tags))


@examples
@given(st.lists(WORDS), st.lists(WORDS))
def test_a_list_is_met_exactly_when_it_is_a_subset_of_the_property(wanted, has):
    """As for tags, under any other key."""
    assume(wanted)
    assert meets(Capabilities(properties={"k": has}), {"k": wanted}) == (set(wanted) <= set(has))


@examples
@given(DEMANDS, RUNNERS)
def test_each_unmet_demand_is_named_once_with_what_the_runner_has(wanted, runner):
    """`why` shows exactly the demands that stand in the way, and no others."""
    missing = d.unmet(wanted, runner)
    keys = [one.key for one in missing]
    assert len(set(keys)) == len(keys)
    for one in missing:
        assert (one.wanted, one.has) == (wanted[one.key], runner.of(one.key))
        assert str(one).startswith(f"{one.key} ")
    assert meets(runner, {key: value for key, value in wanted.items() if key not in keys})


@examples
@given(DEMANDS, RUNNERS, st.data())
def test_demanding_less_is_never_harder(wanted, runner, data):
    """Taking a demand away cannot make a runner unfit."""
    assume(wanted)
    without = data.draw(st.sampled_from(sorted(wanted)))
    less = {key: value for key, value in wanted.items() if key != without}
    assert set(_keys(less, runner)) <= set(_keys(wanted, runner))


def _keys(wanted, runner):
    return [one.key for one in d.unmet(wanted, runner)]


@pytest.mark.parametrize(
    ("wanted", "has", "met"),
    [
        (2, 2, True),
        ("2", 2, True),
        (2, "2", True),
        ("true", True, True),
        ("True", True, False),
        (True, 1, False),
        (1, True, False),
        (False, 0, False),
        (1, 1.0, True),
        ("a", "A", False),
        ("a", ["a"], False),
        (["a"], "a", True),
        (["a", "b"], "a", False),
        ([1], [True], False),
        ("a", None, False),
        ("a", {"a": 1}, False),
        (["2"], [2, 3], True),
    ],
)
def test_a_scalar_must_be_equal_and_a_list_a_subset(wanted, has, met):
    """The command line knows only strings, so 2 meets "2"; but 1 is not true."""
    assert meets(Capabilities(properties={"k": has}), {"k": wanted}) == met


def test_a_runner_without_the_property_or_place_does_not_meet_it():
    """Nothing is assumed of a runner."""
    everything = {"hostname": "h", "project_dir": "/p", "executor_type": "e", "tags": ["t"], "k": 1}
    assert _keys(everything, Capabilities()) == list(everything)


def test_a_property_cannot_pretend_to_be_the_host_or_a_tag():
    """The names of the place and `tags` mean the runner's own, not a property."""
    runner = Capabilities(hostname="h", properties={"hostname": "x", "tags": ["gpu"]})
    assert _keys({"hostname": "x", "tags": ["gpu"]}, runner) == ["hostname", "tags"]


def test_an_unmet_demand_reads_as_words():
    """What `why` and the error of an expired run show."""
    runner = Capabilities(hostname="b", tags=frozenset({"cpu"}))
    found = d.unmet({"hostname": "a", "tags": ["gpu"], "zone": "é"}, runner)
    assert [str(one) for one in found] == [
        'hostname "a" (has "b")',
        'tags ["gpu"] (has ["cpu"])',
        'zone "é" (has none)',
    ]
