"""What a message weighs: its bytes, or its lists, objects and members, which cost more to decode than they say."""

import json

import pytest

from starlette_channels.limits import Limits
from starlette_channels.wire.nodes import NODE_BYTES, TooManyNodes, count_nodes, weigh
from starlette_channels.wire.serializers import V1, V2, TextOnly

JSON = {"[]": 1, "{}": 1, "[1,2.5,null,true]": 1, "[[],[[]]]": 4, '{"a":1,"b":{"c":[]}}': 6, '"text"': 0}


@pytest.mark.parametrize("text", JSON)
def test_nodes_are_lists_objects_and_members(text: str) -> None:
    for serializer in (V1(), V2(), TextOnly(V1())):
        assert count_nodes(serializer, text) == JSON[text]
    assert count_nodes(V1(), text.encode()) == JSON[text], "version 1 takes JSON in frames of either kind"
    assert count_nodes(V2(), text.encode()) == 0, "bytes, which nobody decodes"


def test_a_message_weighs_its_bytes_or_its_nodes() -> None:
    assert weigh(V2(), "x" * 1_000, 0) == 1_000
    assert weigh(V2(), "[]" * 1_000, 1_000) == 1_000 * NODE_BYTES
    with pytest.raises(TooManyNodes, match="a message of 1001 lists, objects and members; it may have 1000"):
        weigh(V2(), "[]" * 1_001, 1_000)


def test_a_large_message_of_usual_shape_is_within_the_limit() -> None:
    point = {"id": 123, "name": "somebody", "at": [12.5, 99.25], "tags": ["a", "b"]}
    message = json.dumps(["1", "2", "room:a", "draw", {"points": [point] * 5_000}])
    assert len(message) > 350_000
    assert count_nodes(V2(), message) < (Limits().message_nodes or 0)
