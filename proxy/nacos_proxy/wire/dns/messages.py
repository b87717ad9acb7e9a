"""Queries from bytes, and answers to bytes: header, EDNS (RFC 6891), sizes and truncation."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdatatype
from dns.rdataclass import IN
from dns.rdatatype import OPT

from nacos_proxy.wire.dns.records import NEGATIVE_TTL, Record, authority

HEADER = 12  # bytes
MIN_UDP = 512  # bytes that every client takes (RFC 1035 4.2.1)
MAX_UDP = 1232  # fits every network without fragments (DNS flag day 2020)
MAX_LOOPBACK = 16_384  # nothing fragments on loopback, and HAProxy does not ask again by TCP
MAX_TCP = 65_535
MAX_QUERY = 2048  # bytes; a name has 255, a cookie 40
# what is no type of a record (RFC 6895 3.1), but ANY, which is answered
_META = range(128, 255)

_HEADER = struct.Struct("!6H")
_SHORT = struct.Struct("!H")
_TWO = struct.Struct("!HH")
_TYPE = struct.Struct("!HHIH")
_OPT = struct.Struct("!BHHIH")
_FIXED = 12  # bytes of a record beside its data, with a pointer for its name
_POINTERS = 0x4000  # how far they reach
_SRV_TARGET = 6  # where the target of a SRV record begins


@dataclass(frozen=True, slots=True)
class Query:
    """A question of a client. `payload`: the UDP size that it takes; `optioned`: it has EDNS options."""

    id: int
    name: dns.name.Name
    rdtype: dns.rdatatype.RdataType
    recursion: bool
    edns: bool = False
    payload: int = MIN_UDP
    optioned: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What we answer: records of the name that was asked. `zone` is given if we are its authority."""

    rcode: dns.rcode.Rcode = dns.rcode.NOERROR
    records: Sequence[Record] = ()
    ttl: int = 0
    zone: dns.name.Name | None = None


REFUSED = Answer(dns.rcode.REFUSED)
SERVFAIL = Answer(dns.rcode.SERVFAIL)


class Faulty(Exception):
    """A query that gets an answer without looking at its name. `rcode` None: it gets none at all."""

    def __init__(self, rcode: dns.rcode.Rcode | None, text: str, query: Query | None = None) -> None:
        super().__init__(text)
        self.rcode = rcode
        self.query = query


def read(packet: bytes) -> Query:
    """The query in a packet. Raises `Faulty`."""
    if len(packet) < HEADER or packet[2] & 0x80:
        raise Faulty(None, "not a query")  # never answer an answer: two servers would go on for ever
    if packet[2] >> 3 & 0xF != dns.opcode.QUERY:
        raise Faulty(dns.rcode.NOTIMP, "another opcode")
    # One question and at most an OPT; checked here, so that dnspython has little to parse
    if packet[4:10] != b"\0\1\0\0\0\0" or packet[10:12] not in (b"\0\0", b"\0\1"):
        raise Faulty(dns.rcode.FORMERR, "not one question")
    try:
        message = dns.message.from_wire(packet)
    except (dns.exception.DNSException, ValueError) as error:
        raise Faulty(dns.rcode.FORMERR, str(error)) from error
    question = message.question[0]
    edns = message.edns >= 0
    query = Query(
        message.id,
        question.name,
        question.rdtype,
        bool(message.flags & dns.flags.RD),
        edns,
        max(MIN_UDP, message.payload) if edns else MIN_UDP,
        edns and len(message.options) > 0,  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    )
    if message.edns > 0:
        raise Faulty(dns.rcode.BADVERS, "a later version of EDNS", query)
    if question.rdclass != IN:
        raise Faulty(dns.rcode.REFUSED, "another class")
    if question.rdtype in (dns.rdatatype.AXFR, dns.rdatatype.IXFR):
        raise Faulty(dns.rcode.REFUSED, "a transfer of the zone", query)
    if question.rdtype in _META or question.rdtype in (0, OPT):
        raise Faulty(dns.rcode.NOTIMP, "no type of a record", query)
    return query


def refusal(packet: bytes, faulty: Faulty) -> bytes:
    """The answer to a faulty query; the bare header if the question could not be read."""
    assert faulty.rcode is not None
    if faulty.query is not None:
        return write(faulty.query, Answer(faulty.rcode), MIN_UDP)[0]
    flags = (packet[2] & 0x79) | 0x80  # its opcode and RD
    return packet[:2] + bytes((flags, faulty.rcode & 0xF)) + bytes(8)


def write(query: Query, answer: Answer, limit: int) -> tuple[bytes, bool]:
    """The message, of at most `limit` bytes, and whether it was truncated.

    Truncated, it has the records that fit, each with the address of its target; the client may ask again by TCP.
    """
    question = (query.name.to_wire() or b"") + _TWO.pack(query.rdtype, IN)
    opt = _OPT.pack(0, OPT, MAX_UDP, answer.rcode >> 4 << 24, 0) if query.edns else b""
    begin = HEADER + len(question)
    records: list[bytes] = []
    glue: list[bytes] = []
    size = begin + len(opt)
    for record in answer.records:
        written = [_record(_pointer(HEADER), record, answer.ttl)]
        if record.glue is not None:
            target = begin + _FIXED + _SRV_TARGET
            name = _pointer(target) if target < _POINTERS else record.rdata[_SRV_TARGET:]
            written.append(_record(name, record.glue, answer.ttl))
        size += sum(map(len, written))
        if size > limit:
            break
        records.append(written[0])
        glue += written[1:]
        begin += len(written[0])
    truncated = len(records) < len(answer.records)
    authorities = b""
    if answer.zone is not None and not answer.records:
        authorities = (answer.zone.to_wire() or b"") + _record(b"", authority(answer.zone), NEGATIVE_TTL)
    if size + len(authorities) > limit:
        authorities = b""
    flags = dns.flags.QR | answer.rcode & 0xF
    flags |= dns.flags.RD if query.recursion else 0
    flags |= dns.flags.TC if truncated else 0
    flags |= dns.flags.AA if answer.zone is not None else 0
    header = _HEADER.pack(query.id, flags, 1, len(records), bool(authorities), len(glue) + query.edns)
    return b"".join((header, question, *records, authorities, *glue, opt)), truncated


def _record(name: bytes, record: Record, ttl: int) -> bytes:
    return name + _TYPE.pack(record.rdtype, IN, ttl, len(record.rdata)) + record.rdata


def _pointer(offset: int) -> bytes:
    """A name that stands at that place of the message (RFC 1035 4.1.4)."""
    return _SHORT.pack(0xC000 | offset)
