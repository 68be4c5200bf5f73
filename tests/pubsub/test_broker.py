"""Fan-out in one event loop: who gets a broadcast, in which order, and encoded how often."""

import gc
import json
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from starlette_channels import V1, V2, SerializerError
from starlette_channels.pubsub.broker import Broker, Subscriptions
from starlette_channels.pubsub.hub import Publication, Route
from starlette_channels.wire.messages import Body, Frame, Gap, as_frame
from starlette_channels.wire.serializers import Serializer

pytestmark = pytest.mark.anyio


class CountingV1(V1):
    """Counts what it encodes."""

    def __init__(self) -> None:
        self.encoded = 0

    def broadcast(self, topic: str, event: str, body: Body) -> str:
        self.encoded += 1
        return super().broadcast(topic, event, body)


class CountingV2(V2):
    """Counts what it encodes."""

    def __init__(self) -> None:
        self.encoded = 0

    def broadcast(self, topic: str, event: str, body: Body) -> Frame:
        self.encoded += 1
        return super().broadcast(topic, event, body)


class Listener:
    """A subscriber that keeps its frames; `then` runs when one has come."""

    def __init__(
        self, serializer: Serializer | None = None, then: Callable[[Publication], object] | None = None
    ) -> None:
        self.serializer = serializer or V2()
        self.then = then
        self.frames: list[Frame] = []
        self.threads: set[int] = set()
        self.gaps: list[Gap] = []

    def deliver(self, publication: Publication) -> None:
        self.frames.append(publication.frame(self.serializer))
        self.threads.add(threading.get_ident())
        if self.then is not None:
            self.then(publication)

    def miss(self, gap: Gap) -> None:
        self.gaps.append(gap)

    @property
    def events(self) -> list[str]:
        return [json.loads(frame)[3] for frame in self.frames]

    @property
    def numbers(self) -> list[int]:
        return [json.loads(frame)[4]["n"] for frame in self.frames]


@pytest.fixture
def broker() -> Broker:
    return Broker()


async def test_every_subscriber_of_the_topic_gets_every_broadcast_in_order(broker: Broker) -> None:
    listeners = [Listener() for _ in range(5)]
    stranger = Listener()
    broker.hub().subscribe("room:b", stranger)
    for listener in listeners:
        broker.hub().subscribe("room:a", listener)
    for number in range(20):
        broker.broadcast("room:a", "e", {"n": number})
    assert [listener.numbers for listener in listeners] == [list(range(20))] * 5
    assert stranger.frames == []
    assert listeners[0].frames[3] == '[null,null,"room:a","e",{"n":3}]'


async def test_subscribers_are_served_in_the_order_of_their_coming(broker: Broker) -> None:
    served: list[int] = []
    listeners = [Listener(then=lambda _, number=number: served.append(number)) for number in range(10)]
    for listener in listeners:
        broker.hub().subscribe("t", listener)
    broker.hub().unsubscribe("t", listeners[3])
    broker.hub().subscribe("t", listeners[3])
    broker.broadcast("t", "e", {})
    assert served == [0, 1, 2, 4, 5, 6, 7, 8, 9, 3]


async def test_subscribing_twice_delivers_once(broker: Broker) -> None:
    listener = Listener()
    broker.hub().subscribe("t", listener)
    broker.hub().subscribe("t", listener)
    broker.broadcast("t", "e", {})
    assert len(listener.frames) == 1
    broker.hub().unsubscribe("t", listener)
    broker.broadcast("t", "e", {})
    assert len(listener.frames) == 1


async def test_who_comes_during_a_fan_out_gets_the_next_broadcast_and_who_goes_gets_none_after_it(
    broker: Broker,
) -> None:
    hub = broker.hub()
    newcomer, leaver = Listener(), Listener()

    def change(publication: Publication) -> None:
        if publication.event == "first":
            hub.subscribe("t", newcomer)
            hub.unsubscribe("t", leaver)
            hub.unsubscribe("t", first)

    first, last = Listener(then=change), Listener()
    for listener in (first, leaver, last):
        hub.subscribe("t", listener)
    broker.broadcast("t", "first", {})
    broker.broadcast("t", "second", {})
    assert first.events == ["first"]
    assert last.events == ["first", "second"]
    assert newcomer.events == ["second"]
    assert "second" not in leaver.events


async def test_who_changes_the_way_during_a_fan_out_is_served_once(broker: Broker) -> None:
    hub = broker.hub()
    quick, slow = Listener(), Listener()

    class Narrow:
        """An outlet that cannot take more: its client has to be asked from now on."""

        def spread(self, writers: Sequence[Any], frame: Frame) -> None:
            for _ in writers:
                quick.frames.append(as_frame(frame))
            hub.subscribe("t", quick)

    hub.subscribe("t", quick, Route(Narrow(), V2(), frozenset()), "writer")
    hub.subscribe("t", slow)
    broker.broadcast("t", "first", {})
    broker.broadcast("t", "second", {})
    assert quick.events == slow.events == ["first", "second"]


async def test_a_broadcast_during_a_fan_out_reaches_everybody_once(broker: Broker) -> None:
    def answer(publication: Publication) -> None:
        if publication.event == "ping":
            broker.broadcast("t", "pong", {})

    listeners = [Listener(), Listener(then=answer), Listener()]
    for listener in listeners:
        broker.hub().subscribe("t", listener)
    broker.broadcast("t", "ping", {})
    assert [sorted(listener.events) for listener in listeners] == [["ping", "pong"]] * 3


async def test_a_broadcast_is_encoded_once_for_each_serializer(broker: Broker) -> None:
    v1, v2, other_v2 = CountingV1(), CountingV2(), CountingV2()
    listeners = [Listener(serializer) for serializer in (v1, v2, other_v2) for _ in range(10)]
    for listener in listeners:
        broker.hub().subscribe("t", listener)
    broker.broadcast("t", "e", {"n": 1})
    assert (v1.encoded, v2.encoded, other_v2.encoded) == (1, 1, 1)
    assert len({id(listener.frames[0]) for listener in listeners[10:20]}) == 1, "all share one frame"
    assert json.loads(listeners[0].frames[0]) == {"topic": "t", "event": "e", "payload": {"n": 1}, "ref": None}
    broker.broadcast("t", "e", {"n": 2})
    assert (v1.encoded, v2.encoded, other_v2.encoded) == (2, 2, 2)


async def test_nothing_is_encoded_for_a_wire_that_nobody_uses(broker: Broker) -> None:
    v2 = CountingV2()
    sender = Listener(v2)
    broker.hub().subscribe("t", sender)
    broker.broadcast("t", "e", {}, sender=sender)
    broker.broadcast("nobody", "e", {})
    assert v2.encoded == 0


async def test_the_sender_is_left_out_and_nobody_else(broker: Broker) -> None:
    sender, twin = Listener(), Listener()
    broker.hub().subscribe("t", sender)
    broker.hub().subscribe("t", twin)
    broker.broadcast("t", "e", {}, sender=sender)
    broker.broadcast("t", "e", {}, sender=object())
    broker.broadcast("t", "e", {})
    assert (len(sender.frames), len(twin.frames)) == (2, 3)


async def test_a_subscriber_that_fails_does_not_concern_the_others(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Publication) -> None:
        raise ValueError("boom")

    listeners = [Listener(), Listener(then=fail), Listener()]
    for listener in listeners:
        broker.hub().subscribe("t", listener)
    broker.broadcast("t", "e", {})
    assert [len(listener.frames) for listener in listeners] == [1, 1, 1]
    assert broker.counts == {"delivery_failed": 1}
    (record,) = caplog.records
    assert record.exc_info is not None
    assert "'e' on 't'" in record.getMessage()


async def test_those_whose_wire_cannot_express_a_broadcast_are_skipped_and_counted(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    v1 = CountingV1()
    old, new = [Listener(v1) for _ in range(3)], [Listener() for _ in range(2)]
    for listener in (old[0], new[0], old[1], new[1], old[2]):
        broker.hub().subscribe("t", listener)
    broker.broadcast("t", "e", b"\xff")
    assert [listener.frames for listener in old] == [[]] * 3
    assert [listener.frames for listener in new] == [[b"\x02\x01\x01te\xff"]] * 2
    assert broker.counts == {"inexpressible_broadcast": 3}
    assert v1.encoded == 1, "the refusal is remembered as a frame is"
    assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_a_payload_that_no_wire_can_express_is_the_broadcasters_error(broker: Broker) -> None:
    listener = Listener()
    broker.hub().subscribe("t", listener)
    with pytest.raises(SerializerError, match="must be an object"):
        broker.broadcast("t", "e", [1])
    assert broker.counts == {"inexpressible_broadcast": 1}
    old = Listener(V1())
    broker.hub().subscribe("t", old)
    broker.broadcast("t", "e", [1])
    assert json.loads(old.frames[0])["payload"] == [1]
    assert broker.counts == {"inexpressible_broadcast": 2}


@pytest.mark.parametrize("payload", [object(), {"a": object()}, {(1, 2): 3}])
async def test_what_cannot_be_encoded_is_a_type_error_even_if_nobody_listens(broker: Broker, payload: object) -> None:
    with pytest.raises(TypeError):
        broker.broadcast("t", "e", payload)


async def test_topics_are_gone_when_the_last_subscriber_is(broker: Broker) -> None:
    hub = broker.hub()
    one, other = Listener(), Listener()
    hub.subscribe("t", one)
    hub.subscribe("t", other)
    hub.subscribe("u", one)
    assert (broker.topics, hub.topics) == (2, 2)
    broker.broadcast("t", "e", {})
    hub.unsubscribe("t", one)
    hub.unsubscribe("t", one)
    hub.unsubscribe("never heard of", one)
    assert broker.topics == 2
    hub.unsubscribe("t", other)
    hub.unsubscribe("u", one)
    assert broker.topics == 0


async def test_nothing_holds_a_subscriber_that_has_gone(broker: Broker) -> None:
    hub = broker.hub()
    listener, other = Listener(), Listener()
    hub.subscribe("t", listener)
    hub.subscribe("t", other)
    broker.broadcast("t", "e", {})
    hub.unsubscribe("t", listener)
    gone = weakref.ref(listener)
    del listener
    gc.collect()
    assert gone() is None


async def test_topics_that_were_used_once_leave_no_memory_behind(broker: Broker) -> None:
    hub, listener = broker.hub(), Listener()

    def use(names: range) -> None:
        for name in names:
            hub.subscribe(f"room:{name}", listener)
            broker.broadcast(f"room:{name}", "e", {})
            broker.broadcast(f"nobody:{name}", "e", {})
            hub.unsubscribe(f"room:{name}", listener)
            listener.frames.clear()

    use(range(100))
    tracemalloc.start()
    try:
        use(range(100, 200))
        before, _ = tracemalloc.get_traced_memory()
        use(range(200, 2_200))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 20_000


async def test_further_subscriptions_deliver_once_each_and_leave_out_what_their_owner_sends(broker: Broker) -> None:
    owner, heard = Listener(), list[str]()
    subscriptions = Subscriptions(broker.hub(), owner, lambda publication: heard.append(publication.event))
    subscriptions.add("t")
    subscriptions.add("t")
    subscriptions.add("u")
    broker.broadcast("t", "twice", {})
    broker.broadcast("u", "once", {})
    broker.broadcast("t", "own", {}, sender=owner)
    assert heard == ["twice", "twice", "once"]
    subscriptions.remove("t")
    subscriptions.remove("never heard of")
    broker.broadcast("t", "gone", {})
    broker.broadcast("u", "still there", {})
    assert heard[3:] == ["still there"]
    subscriptions.add("t")
    subscriptions.clear()
    assert broker.topics == 0


async def test_a_hub_belongs_to_its_loop_and_runs_functions_at_once_there(broker: Broker) -> None:
    hub = broker.hub()
    assert broker.hub() is hub
    assert Broker().hub() is not hub
    ran: list[int] = []
    hub.run(ran.append, 1)
    assert ran == [1]
