"""Selectors over metadata, in Kubernetes' grammar."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.model.selectors import ANY, MAX_SELECTOR, Requirement, Selector

ORDERS = {"zone": "a", "version": "2", "canary": "", "note": 'x, "y"', "nothing": None}


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("", True),
        ("zone=a", True),
        ("zone == a", True),
        ("zone=b", False),
        ("zone!=b", True),
        ("region!=x", True),
        ("region=x", False),
        ("canary", True),
        ("nothing", True),
        ("nothing=", True),
        ("region", False),
        ("!region", True),
        ("! zone", False),
        ("zone in (a,b)", True),
        ("zone in ( b , c )", False),
        ("zone notin (b,c)", True),
        ("region notin (x)", True),
        ("region in (x,)", False),
        ("canary in (x,)", True),
        ("version>1", True),
        ("version<2", False),
        ("zone>1", False),
        ("region<1", False),
        ("zone=a,version=2,!old", True),
        ("zone=a,version=3", False),
        ("zone=", False),
        ("canary=,zone=a", True),
        (r'note="x, \"y\""', True),
        ('"zone" = "a"', True),
        ("in in (in)", False),
    ],
)
def test_selector_matches_as_kubernetes_does(text: str, matches: bool) -> None:
    assert Selector.parse(text).matches(ORDERS) is matches


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("=a", "at character 1 ('=a'): expected a metadata key"),
        ("zone=a,", "at its end: expected a metadata key"),
        ("zone=a b", "at character 8 ('b'): expected ',' or the end"),
        ("zone a", "at character 6 ('a'): expected '=', '!=', 'in', 'notin', '<', '>' or ','"),
        ("zone in a", "at character 9 ('a'): expected '('"),
        ("zone in (a", "at its end: expected ',' or ')'"),
        ("zone=(a)", "at character 6 ('(a)'): expected a value; one with such characters stands in double quotes"),
        ('zone="a', "at character 6 ('\"a'): the quote is never closed"),
        ("version>two", "at character 9 ('two'): '>' compares whole numbers"),
        ("x" * (MAX_SELECTOR + 1), "it has 1001 characters, 1000 are allowed"),
    ],
)
def test_selector_parse_points_at_the_place_of_an_error(text: str, complaint: str) -> None:
    with pytest.raises(ValueError) as refused:
        Selector.parse(text)
    assert str(refused.value) == complaint


def test_selectors_are_equal_in_any_order_and_spelling() -> None:
    one, other = Selector.parse("zone in (b, a),canary"), Selector.parse(" canary , zone in (a,b,a)")
    assert one == other
    assert hash(one) == hash(other)
    assert str(one) == "canary,zone in (a,b)"
    assert not ANY and ANY == Selector.parse("  ")


words = st.text(max_size=8)
keys = st.text(min_size=1, max_size=8)
requirements = st.one_of(
    st.builds(Requirement, keys, st.sampled_from(["exists", "!"]), st.just(())),
    st.builds(
        lambda key, operator, values: Requirement(key, operator, tuple(sorted(values))),
        keys,
        st.sampled_from(["in", "notin"]),
        st.sets(words, min_size=1, max_size=3),
    ),
    st.builds(
        lambda key, operator, number: Requirement(key, operator, (str(number),)),
        keys,
        st.sampled_from(["<", ">"]),
        st.integers(-(10**18), 10**18),
    ),
)


@given(st.lists(requirements, max_size=4))
def test_selector_text_parses_to_the_same_requirements(given_: list[Requirement]) -> None:
    selector = Selector.of(*given_)
    again = Selector.parse(str(selector))
    assert again == selector
    assert again.requirements == selector.requirements


@given(st.text(max_size=40), st.dictionaries(st.text(max_size=3), st.none() | st.text(max_size=3), max_size=4))
def test_selector_parse_takes_any_text_or_raises_value_error(text: str, metadata: dict[str, str | None]) -> None:
    try:
        selector = Selector.parse(text)
    except ValueError:
        return
    assert selector.matches(metadata) in (True, False)
    assert Selector.parse(str(selector)) == selector


@given(st.lists(requirements, max_size=3), st.dictionaries(keys, st.none() | words, max_size=4))
def test_requirements_all_have_to_hold(given_: list[Requirement], metadata: dict[str, str | None]) -> None:
    assert Selector.of(*given_).matches(metadata) == all(one.matches(metadata) for one in given_)


@given(keys, st.sets(words, min_size=1, max_size=3), st.dictionaries(keys, st.none() | words, max_size=4))
def test_notin_is_the_opposite_of_in(key: str, values: set[str], metadata: dict[str, str | None]) -> None:
    named = tuple(values)
    assert Requirement(key, "in", named).matches(metadata) is not Requirement(key, "notin", named).matches(metadata)
