"""What logs show of parameters and payloads: no secrets, no control characters, not much."""

import json
import string
import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Raw

from starlette_channels.observability.redaction import MOST_BYTES, MOST_SHOWN, SECRETS, ParameterFilter

FILTERED = "[FILTERED]"
SECRET = "hunter2hunter2"


def shown(value: Any, **options: Any) -> Any:
    return json.loads(ParameterFilter(**{"filtered": SECRETS, **options}).show(Raw(json.dumps(value).encode())))


def test_values_whose_names_contain_a_secret_word_are_hidden_wherever_they_are() -> None:
    secrets = {
        "password": SECRET,
        "user_password_2": SECRET,
        "API-Key": SECRET,
        "apiKey": {"a": SECRET},
        "JWT": [1],
    }
    assert shown({"name": "ann", "list": [secrets], "deep": {"er": secrets}}) == {
        "name": "ann",
        "list": [dict.fromkeys(secrets, FILTERED)],
        "deep": {"er": dict.fromkeys(secrets, FILTERED)},
    }


@pytest.mark.parametrize(
    "text",
    [
        f"/login?password={SECRET}",
        f"a=1&user[password]={SECRET}&b=2",
        f"user%5Bpassword%5D={SECRET}",
        f"password%3D{SECRET}",
        f"PassWord: {SECRET}",
        f"api-key={SECRET}; path=/",
        f'{{"password": "{SECRET} {SECRET}"}}',
        f"{{'password': '{SECRET} {SECRET}'}}",
        f"Authorization: Bearer {SECRET}",
        f"bearer {SECRET}",
        f"Basic {SECRET}",
        f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.{SECRET}aaaaaaaaaaaaa",
        f"lp1.0123456789abcdef.1700000000000.{SECRET}aaaaaaaaaaaaa",
    ],
)
def test_secrets_inside_of_texts_are_hidden_and_the_rest_is_not(text: str) -> None:
    for value in (f"before {text} after", {"url": f"before {text}"}, {f"before {text}": 1}):
        found = json.dumps(shown(value))
        assert SECRET not in found
        assert "before" in found


def test_what_is_no_secret_is_shown_as_it_is() -> None:
    value: dict[str, Any] = {
        "body": "hello, my pass is www.example.com",
        "n": 1.5,
        "yes": True,
        "no": None,
        "list": [1, "é", []],
    }
    assert shown(value) == value


def test_names_are_the_applications_own() -> None:
    assert shown({"pin": 1, "password": "x"}, filtered=["pin"]) == {"pin": FILTERED, "password": "x"}
    assert shown({"password": "x", "text": "password=x"}, filtered=[]) == {"password": "x", "text": "password=x"}
    with pytest.raises(TypeError, match="lists of names"):
        ParameterFilter("password")


def test_names_that_are_kept_are_shown_and_no_others() -> None:
    value = {"id": 1, "name": "ann", "inner": [{"id": {"a": "b"}, "x": 2}], "ids": 3}
    assert shown(value, kept=["id"]) == {
        "id": 1,
        "name": FILTERED,
        "inner": [{"id": {"a": "b"}, "x": FILTERED}],
        "ids": FILTERED,
    }
    assert shown("text", kept=["id"]) == FILTERED
    assert shown({"id": {"password": SECRET}}, kept=["id"]) == {"id": {"password": FILTERED}}


def test_bytes_and_large_and_broken_payloads_are_known_by_their_size() -> None:
    show = ParameterFilter(SECRETS).show
    assert show(b"hunter2") == "<7 bytes>"
    assert show(Raw(b'"%b"' % (b"x" * MOST_BYTES))) == f"<{MOST_BYTES + 2} bytes of JSON>"
    assert show(Raw(b'{"a":')) == "<5 bytes that cannot be decoded>"
    assert show(Raw(b"[" * 4_000 + b"]" * 4_000)).endswith(("bytes that cannot be decoded>", '["..."]' + "]" * 15))


def test_a_text_that_is_cut_does_not_end_in_half_a_secret() -> None:
    token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4ifQ." + SECRET + "a" * 40
    for length in range(2 * MOST_SHOWN - 120, 2 * MOST_SHOWN + 20):
        masked = "password=x " * (length // 11)
        assert "hunter2" not in ParameterFilter(SECRETS).show_value(masked + token + " " * 1_000)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


@given(json_values)
@example("\x00\x1b[31m\x85\u2028\u202e\x7f\ud7ff")
def test_whatever_comes_is_one_printable_line_of_bounded_length(value: Any) -> None:
    for kept in (None, ["a"]):
        line = ParameterFilter(SECRETS, kept).show(Raw(json.dumps(value).encode()))
        assert line.isprintable()
        assert len(line) <= 12 * MOST_SHOWN


@given(json_values, st.sampled_from(SECRETS), st.text(string.ascii_letters, max_size=5), st.text(max_size=3))
def test_a_secret_under_its_name_is_never_shown(value: Any, name: str, before: str, after: str) -> None:
    wrapped: Any = {before + name.upper() + after: [{"x": SECRET}, SECRET], "value": value}
    for _ in range(4):
        wrapped = [wrapped, {"deeper": wrapped}]
    assert SECRET not in ParameterFilter(SECRETS).show(Raw(json.dumps(wrapped).encode()))


@pytest.mark.parametrize("bad", ["password" * 1_200, "a." * 4_900, "a" * 9_900, "password='" * 900, "bearer " * 1_400])
def test_no_text_takes_long(bad: str) -> None:
    start = time.perf_counter()
    for value in (bad, [bad[:500]] * 15, {bad: bad[:100]}):
        ParameterFilter(SECRETS).show(Raw(json.dumps(value).encode()))
    assert time.perf_counter() - start < 1.0
