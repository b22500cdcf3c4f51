"""The prompt of a callback: whatever children say, it is read as what they said."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runqueue.callback_prompt import ChildEnd, pack, parse_callback, render

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
CHILDREN = st.lists(
    st.builds(
        ChildEnd,
        run_id=TEXT,
        session_id=TEXT,
        agent_name=st.none() | TEXT,
        outcome=st.sampled_from(["completed", "failed", "stopped"]),
        result=st.none() | TEXT,
        error=st.none() | TEXT,
        finished_at=st.none() | TEXT,
    ),
    max_size=5,
)


def child(number: int = 0, **more: str | None) -> ChildEnd:
    return ChildEnd(
        f"run_{number:012}", f"ses_{number:012}", None, "completed", "", None, None
    )._replace(**more)


@given(TEXT, CHILDREN)
def test_what_was_rendered_is_read_back(parent: str, children: list[ChildEnd]):
    """Any text at any place, and two lines whatever it holds."""
    prompt = render(parent, children)
    assert parse_callback(prompt) == children
    assert len(prompt.splitlines()) == 2
    assert json.loads(prompt.split("\n")[1])["parent_session_id"] == parent


@given(st.lists(st.text("aü\n\u2028\U0001f600\0", max_size=3000), min_size=1, max_size=8))
def test_no_page_is_over_the_limit_and_no_child_is_left_out(results: list[str]):
    """What does not fit whole is cut, and says so; the rest is on further pages."""
    children = [child(number, result=text) for number, text in enumerate(results)]
    pages = list(pack([], children, 2_000))
    assert [one.run_id for page in pages for one in page] == [one.run_id for one in children]
    for page in pages:
        assert len(render("ses_p", page).encode()) <= 2_000
        for shown in page:
            whole = children[int(shown.run_id[4:])].result
            assert whole.startswith(shown.result)
            assert (shown.cut is None) == (shown.result == whole)


def test_a_child_that_said_nothing_fits_where_next_to_nothing_is_left():
    """There is nothing to cut, however little room there is."""
    for limit in range(700, 1_000):
        pages = list(pack([child(1)], [child(2), child(3, result="x")], limit))
        shown = [one for page in pages for one in page]
        assert [one.result for one in shown[:2]] == ["", ""]
        assert shown[2].result in ("", "x")


def test_what_a_prompt_tells_of_already_stays_at_its_place():
    """New ends come after it, as long as there is room."""
    told = [child(1, result="x" * 500), child(2)]
    (page,) = pack(told, [child(3)], 10_000)
    assert page == [*told, child(3)]
    first, second = pack(told, [child(3)], 1_000)
    assert first == told
    assert second == [child(3)]


def test_a_cut_error_says_that_it_is_one():
    """As a cut result does."""
    failed = child(7, outcome="failed", result=None, error="e" * 10_000)
    ((shown,),) = pack([], [failed], 4_000)
    assert shown.error
    assert shown.error == "e" * len(shown.error)
    assert shown.cut == (
        "the error has 10,000 bytes; all of it: runqueue show run_000000000007 -o json"
    )
    assert parse_callback(render("ses_p", [shown])) == [shown]


def test_other_scripts_can_be_read_as_they_are():
    """An agent reads them better than escapes; what could hide or drive is escaped."""
    prompt = render("ses_p", [child(result="你好 naïve \u202e\x7f\x85")])
    assert "你好 naïve \\u202e\\u007f\\u0085" in prompt


@pytest.mark.parametrize(
    "prompt",
    [
        *("", "x", "x\n", "x\n{", "x\n[]", "x\nnull", 'x\n"text"', "x\n{}", "x\n" + "[" * 100_000),
        'x\n{"kind":"runqueue/callback"}',
        'x\n{"kind":"runqueue/callback","version":1}',
        'x\n{"kind":"runqueue/callback","version":1,"children":3}',
        'x\n{"kind":"runqueue/callback","version":1,"children":["x"]}',
        'x\n{"kind":"runqueue/callback","version":2,"children":[]}',
        'x\n{"kind":"another","version":1,"children":[]}',
    ],
    ids=lambda prompt: prompt[:70],
)
def test_any_other_prompt_is_none(prompt: str):
    """And no error: an agent asks of every prompt."""
    assert parse_callback(prompt) is None


def test_what_a_later_version_adds_is_left_out():
    """Of the same version, that is."""
    line = '{"kind":"runqueue/callback","version":1,"children":[{"run_id":"r","more":1}]}'
    (read,) = parse_callback(f"x\n{line}") or []
    assert read.run_id == "r"
    assert read.result is None
