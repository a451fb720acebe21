"""How RabbitMQ is told of what is done: with few frames, and never of more than is done. Pure."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest
from pika import exceptions

from messaging.backends.rabbitmq.frames import ACK, NACK, Deliver, LosslessConnection, take_frames
from messaging.backends.rabbitmq.subscription import settlement_frames

SETTLE = struct.Struct(">BHIIQBc")


def settled(frames: list[bytes], open_before: list[int]) -> tuple[set[int], set[int]]:
    """What a broker would take as acknowledged and as returned."""
    acked: set[int] = set()
    returned: set[int] = set()
    for frame in frames:
        _, _, _, method, tag, bits, _ = SETTLE.unpack(frame)
        if method == NACK:
            returned.add(tag)
        elif bits & 1:
            acked |= {one for one in open_before if one <= tag} - returned
        else:
            acked.add(tag)
        assert method in (ACK, NACK)
    return acked, returned


def test_what_nothing_open_precedes_is_acknowledged_with_one_frame() -> None:
    open_tags = dict.fromkeys(range(1, 501))
    assert len(settlement_frames(1, open_tags, set(range(1, 401)), [])) == 1
    assert list(open_tags) == list(range(401, 501))
    assert len(settlement_frames(1, open_tags, {402, 403}, [])) == 2, "401 still runs"


def test_exactly_what_was_settled_is_told() -> None:
    chance = random.Random(7)
    for _ in range(500):
        tags = sorted(chance.sample(range(1, 60), chance.randint(1, 30)))
        acked = set(chance.sample(tags, chance.randint(0, len(tags))))
        returned = [tag for tag in tags if tag not in acked and chance.random() < 0.3]
        open_tags = dict.fromkeys(tags)
        frames = settlement_frames(1, open_tags, set(acked), returned)
        assert settled(frames, tags) == (acked, set(returned))
        assert set(open_tags) == set(tags) - acked - set(returned)


def deliver_frame(redelivered: bool) -> bytes:
    payload = struct.pack(">I", 0x003C003C) + b"\x05ctag1" + struct.pack(">QB", 7, redelivered)
    return frame(1, payload + b"\x02ex" + b"\x03k\xff.")


def frame(kind: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, 3, len(payload)) + payload + b"\xce"


def header(size: int) -> bytes:
    return frame(2, struct.pack(">HHQH", 60, 0, size, 0))


@pytest.mark.parametrize("pieces", [[], [b"whole"], [b"in", b" two"]])
def test_a_delivery_is_complete_with_the_last_byte_of_its_body(pieces: list[bytes]) -> None:
    body = b"".join(pieces)
    buffer = bytearray(deliver_frame(True) + header(len(body)) + b"".join(frame(3, piece) for piece in pieces))
    [delivery, *content] = [found for found, _ in take_frames(buffer)]
    assert isinstance(delivery, Deliver)
    for one in content:
        assert not delivery.is_complete
        delivery.add(one)
    assert delivery.is_complete
    assert (delivery.body, delivery.properties, delivery.tag, delivery.redelivered) == (body, b"\0\0", 7, True)
    assert (delivery.exchange, delivery.routing_key) == ("ex", "k\udcff.")


def listening(consumer: Callable[[Deliver], None]) -> LosslessConnection:
    """A connection that reads what it is given."""
    io = LosslessConnection.__new__(LosslessConnection)
    io._inbound, io._arriving, io.confirms, io.consumers = bytearray(), {}, {}, {3: consumer}
    io.bytes_received, io.on_content = 0, lambda _: None
    return io


def test_deliveries_arrive_whole_wherever_the_network_cuts_them() -> None:
    chance, bodies = random.Random(7), [b"", b"x", b"y" * 3000, b"", b"z" * 70_000]
    stream = b"".join(
        deliver_frame(False)
        + header(len(body))
        + b"".join(frame(3, body[at : at + 999]) for at in range(0, len(body), 999))
        for body in bodies
    )
    for longest in (1, 7, 50, 5000, len(stream)):
        found: list[Deliver] = []
        io, at = listening(found.append), 0
        while at < len(stream):
            size = chance.randint(1, longest)
            io._on_data_available(stream[at : at + size])
            at += size
        assert [delivery.body for delivery in found] == bodies
        assert io.bytes_received == len(stream)


def test_a_delivery_never_takes_the_place_of_one_that_is_incomplete() -> None:
    io = listening(lambda _: None)
    with pytest.raises(exceptions.UnexpectedFrameError):
        io._on_data_available(deliver_frame(False) + header(4) + deliver_frame(False))


@pytest.mark.parametrize("content", [[frame(3, b"body")], [header(2), frame(3, b"body")], [header(4), header(4)]])
def test_content_that_does_not_belong_there_ends_the_connection(content: list[bytes]) -> None:
    buffer = bytearray(deliver_frame(False) + b"".join(content))
    [delivery, *frames] = [found for found, _ in take_frames(buffer)]
    for one in frames[:-1]:
        delivery.add(one)
    with pytest.raises(exceptions.UnexpectedFrameError):
        delivery.add(frames[-1])
