#!/usr/bin/env python3
"""An independent reader of Keyway envelopes, written from docs/envelope.md alone.

    keyway_reader.py check docs/envelope-vectors.json
    keyway_reader.py open (--kek-hex HEX | --dek-hex HEX) --zone Z [--tenant T] --domain D [-o OUT] FILE

Needs Python 3.9 and the package `cryptography`. Opens in constant memory; FILE may be `-`.
Exit code: 0 done, 1 refused or a vector failed, 2 wrong arguments.
"""

import argparse
import hashlib
import hmac
import io
import json
import os
import sys
import tempfile
from typing import BinaryIO, Callable, NamedTuple, Optional, Tuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.keywrap import (
    InvalidUnwrap,
    aes_key_unwrap_with_padding,
    aes_key_wrap_with_padding,
)

MAGIC = b"\xfbKWY"
SEGMENT = 16384
TAG = 16
SEALED_SEGMENT = SEGMENT + TAG
HEADER = 160
MAX_SEGMENTS = 1 << 38
HOLD_BACK = 16
# mechanism: (kind, wrapped length)
MECHANISMS = {0: (2, 0), 1: (1, 60), 3: (1, 56)}
PROFILES = (1, 2, 0x7F)


class Refusal(Exception):
    """The envelope is refused; the text is a name from the specification's table."""


class Context(NamedTuple):
    """The parts that are authenticated beside the bytes; None is absent."""

    zone: str
    tenant: Optional[str]
    domain: str
    direction: int = 0
    profile: int = 1
    field: Optional[str] = None
    object_id: Optional[str] = None
    content_type: Optional[str] = None

    def to_bytes(self, dek_id: bytes) -> bytes:
        text = lambda value: None if value is None else value.encode()
        parts = [
            text(self.zone),
            text(self.tenant),
            text(self.domain),
            bytes([self.direction]),
            bytes([self.profile]),
            text(self.field),
            text(self.object_id),
            text(self.content_type),
        ]
        tlv = b"".join(
            bytes([tag]) + len(value).to_bytes(4, "big") + value
            for tag, value in enumerate(parts, start=1)
            if value is not None
        )
        return b"keyway/v1\0" + dek_id + hashlib.sha256(b"keyway context v1\0" + tlv).digest()


class KeyBlock(NamedTuple):
    mechanism: int
    kek_ref: bytes
    dek_id: bytes
    wrapped: bytes

    @staticmethod
    def parse(block: bytes) -> "KeyBlock":
        kind, mechanism = block[0], block[1]
        if mechanism not in MECHANISMS:
            raise Refusal("key-block")
        right_kind, length = MECHANISMS[mechanism]
        if (
            kind != right_kind
            or block[2:4] != (96).to_bytes(2, "big")
            or block[28:30] != length.to_bytes(2, "big")
            or block[30:32] != bytes(2)
            or any(block[32 + length :])
        ):
            raise Refusal("key-block")
        return KeyBlock(mechanism, block[4:12], block[12:28], block[32 : 32 + length])

    def fields(self) -> bytes:
        kind, _ = MECHANISMS[self.mechanism]
        return bytes([kind, self.mechanism]) + (96).to_bytes(2, "big") + self.kek_ref + self.dek_id

    def to_bytes(self) -> bytes:
        return self.fields() + len(self.wrapped).to_bytes(2, "big") + bytes(2) + self.wrapped.ljust(64, b"\0")

    def wrap_aad(self, zone: str, tenant: Optional[str]) -> bytes:
        scope = b"keyway wrap scope v1\0"
        for name in (zone.encode(), (tenant or "").encode()):
            scope += len(name).to_bytes(8, "big") + name
        return b"keyway wrap v1\0" + self.fields() + hashlib.sha256(scope).digest()

    def unwrap(self, kek: bytes, zone: str, tenant: Optional[str]) -> bytes:
        aad = self.wrap_aad(zone, tenant)
        try:
            if self.mechanism == 1:
                return AESGCM(kek).decrypt(self.wrapped[:12], self.wrapped[12:], aad)
            plain = aes_key_unwrap_with_padding(kek, self.wrapped)
        except (InvalidTag, InvalidUnwrap):
            raise Refusal("unwrap") from None
        if len(plain) != 48 or not hmac.compare_digest(plain[32:], hashlib.sha256(aad).digest()[:16]):
            raise Refusal("unwrap")
        return plain[:32]


class Keys(NamedTuple):
    """What one message is sealed with."""

    key: bytes
    nonce: bytes
    commitment: bytes

    @staticmethod
    def derive(dek: bytes, salt: bytes, context: bytes) -> "Keys":
        info = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0" + salt + context
        okm = HKDFExpand(hashes.SHA512(), 76, info).derive(dek)
        return Keys(okm[:32], okm[32:44], okm[44:])

    def segment_nonce(self, index: int) -> bytes:
        if index >= MAX_SEGMENTS:
            raise Refusal("too-long")
        return (int.from_bytes(self.nonce, "big") ^ index).to_bytes(12, "big")


class Head(NamedTuple):
    """Everything in front of the segments."""

    profile: Optional[int]
    block: KeyBlock
    salt: bytes
    commitment: bytes


# Gives (DEK, its id) for a key block, or refuses.
KeySource = Callable[[KeyBlock], Tuple[bytes, bytes]]


def read_up_to(source: BinaryIO, length: int) -> bytes:
    """Reads until `length` bytes are there or the source ends (pipes give less at a time)."""
    data = b""
    while len(data) < length:
        more = source.read(length - len(data))
        if not more:
            break
        data += more
    return data


def read_object_head(source: BinaryIO, first: bytes = b"") -> Head:
    head = first + read_up_to(source, HEADER - len(first))
    if not head or head[:4] != MAGIC[: len(head)]:
        raise Refusal("magic")
    if len(head) < HEADER:
        raise Refusal("short")
    for value, known, name in (
        (head[4], (1,), "version"),
        (head[5], (1,), "suite"),
        (head[6], (0,), "flags"),
        (head[7], PROFILES, "profile"),
    ):
        if value not in known:
            raise Refusal(name)
    return Head(head[7], KeyBlock.parse(head[8:104]), head[104:128], head[128:160])


def read_compact_head(source: BinaryIO, first: bytes = b"") -> Head:
    head = first + read_up_to(source, 2 - len(first))
    if len(head) < 2:
        raise Refusal("short")
    if head[0] not in (0x11, 0x12):
        raise Refusal("version")
    if head[1] != 1:
        raise Refusal("suite")
    length = 24 if head[0] == 0x11 else 96
    block = read_up_to(source, length)
    if len(block) < length:
        raise Refusal("short")
    if head[0] == 0x11:
        key_block = KeyBlock(0, block[:8], block[8:], b"")
    else:
        key_block = KeyBlock.parse(block)
        if key_block.mechanism == 0:
            raise Refusal("key-block")
    rest = read_up_to(source, 56)
    if len(rest) < 56:
        raise Refusal("short")
    return Head(None, key_block, rest[:24], rest[24:])


def open_segments(source: BinaryIO, sink: BinaryIO, keys: Keys) -> None:
    """Writes verified plaintext; the last bytes only once the message's end is verified."""
    aead = AESGCM(keys.key)
    held = b""
    index = 0
    while True:
        sealed = read_up_to(source, SEALED_SEGMENT)
        if len(sealed) < TAG:
            raise Refusal("truncated")
        try:
            plain = aead.decrypt(keys.segment_nonce(index), sealed, None)
        except InvalidTag:
            raise Refusal("tag") from None
        if len(sealed) < SEALED_SEGMENT:
            sink.write(held + plain)
            return
        sink.write(held + plain[:-HOLD_BACK])
        held = plain[-HOLD_BACK:]
        index += 1


def open_envelope(source: BinaryIO, sink: BinaryIO, form: str, key_source: KeySource, context: Context) -> None:
    first = b""
    if form == "auto":
        first = read_up_to(source, 1)
        form = "compact" if first in (b"\x11", b"\x12") else "object"
    head = (read_object_head if form == "object" else read_compact_head)(source, first)
    if form == "compact":
        # Short by nature, and its length is known: refuse an impossible one before any key is asked for.
        body = source.read()
        plain_len_of_segments(len(body))
        source = io.BytesIO(body)
    elif head.profile != context.profile:
        raise Refusal("wrong-profile")
    dek, dek_id = key_source(head.block)
    if dek_id != head.block.dek_id:
        raise Refusal("commitment")
    keys = Keys.derive(dek, head.salt, context.to_bytes(dek_id))
    if not hmac.compare_digest(keys.commitment, head.commitment):
        raise Refusal("commitment")
    open_segments(source, sink, keys)


# Lengths and ranges


def segments_len(plain: int) -> int:
    return plain + TAG * (plain // SEGMENT + 1)


def plain_len_of_segments(length: int) -> int:
    full, rest = divmod(length, SEALED_SEGMENT)
    if length < 0 or rest < TAG or full >= MAX_SEGMENTS:
        raise Refusal("length")
    return full * SEGMENT + rest - TAG


def range_plan(plain_len: int, first: int, last: int) -> dict:
    final = plain_len // SEGMENT
    last_segment = final if last == plain_len - 1 else last // SEGMENT
    end = HEADER + segments_len(plain_len) if last_segment == final else HEADER + (last_segment + 1) * SEALED_SEGMENT
    return {
        "from": HEADER + first // SEGMENT * SEALED_SEGMENT,
        "to": end - 1,
        "skip": first % SEGMENT,
        "take": last - first + 1,
    }


# Test vectors


def pattern(length: int) -> bytes:
    period = bytes(range(251))
    return (period * (length // 251 + 1))[:length]


def seal(vector: dict, form: str, plain: bytes) -> bytes:
    """Writes a vector's envelope anew from its keys, salt and IV: the other direction."""
    unhex = lambda name: bytes.fromhex(vector[name])
    given, context = vector["key_block"], Context(**vector["context"])
    dek, dek_id, salt = unhex("dek"), unhex("dek_id"), unhex("salt")
    block = KeyBlock(given["mechanism"], bytes.fromhex(given["kek_ref"]), dek_id, b"")
    aad = block.wrap_aad(context.zone, context.tenant)
    if block.mechanism == 1:
        iv = bytes.fromhex(given["iv"])
        block = block._replace(wrapped=iv + AESGCM(unhex("kek")).encrypt(iv, dek, aad))
    elif block.mechanism == 3:
        both = dek + hashlib.sha256(aad).digest()[:16]
        block = block._replace(wrapped=aes_key_wrap_with_padding(unhex("kek"), both))
    keys = Keys.derive(dek, salt, context.to_bytes(dek_id))
    between = {
        "key_block_bytes": block.to_bytes(),
        "context_bytes": context.to_bytes(dek_id),
        "message_key": keys.key,
        "base_nonce": keys.nonce,
        "commitment": keys.commitment,
    }
    if block.mechanism:
        between["wrap_aad"] = aad
    for name, value in between.items():
        if value != unhex(name):
            raise AssertionError(f"{name} differs")
    if form == "object":
        head = MAGIC + bytes([1, 1, 0, context.profile]) + block.to_bytes()
    elif block.mechanism == 0:
        head = b"\x11\x01" + block.kek_ref + dek_id
    else:
        head = b"\x12\x01" + block.to_bytes()
    out = [head, salt, keys.commitment]
    aead = AESGCM(keys.key)
    for index in range(len(plain) // SEGMENT + 1):
        part = plain[index * SEGMENT : (index + 1) * SEGMENT]
        out.append(aead.encrypt(keys.segment_nonce(index), part, None))
    return b"".join(out)


def edit(envelope: bytes, header: int, change: dict) -> bytes:
    ((name, value),) = change.items()
    data = bytearray(envelope)
    if name == "xor":
        data[value[0]] ^= value[1]
    elif name == "set":
        new = bytes.fromhex(value[1])
        data[value[0] : value[0] + len(new)] = new
    elif name == "truncate":
        del data[value:]
    elif name == "append":
        data += bytes.fromhex(value)
    else:
        segments = [envelope[at : at + SEALED_SEGMENT] for at in range(header, len(envelope), SEALED_SEGMENT)]
        if name == "swap":
            i, j = value
            segments[i], segments[j] = segments[j], segments[i]
        elif name == "repeat":
            segments.insert(value, segments[value])
        elif name == "drop":
            del segments[value]
        else:
            raise AssertionError(f"unknown edit {name}")
        data = bytearray(envelope[:header] + b"".join(segments))
    return bytes(data)


def vector_keys(vector: dict, instead: dict, context: Context) -> KeySource:
    value = lambda name: bytes.fromhex(instead.get(name) or vector[name])

    def source(block: KeyBlock) -> Tuple[bytes, bytes]:
        if block.mechanism == 0:
            return value("dek"), value("dek_id")
        return block.unwrap(value("kek"), context.zone, context.tenant), block.dek_id

    return source


class Check:
    """Runs the vectors; counts what passes and prints what does not."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed = 0

    def run(self, name: str, test: Callable[[], None]) -> None:
        try:
            test()
            self.passed += 1
        except (AssertionError, Refusal) as problem:
            self.failed += 1
            print(f"FAILED {name}: {type(problem).__name__} {problem}", file=sys.stderr)

    def valid(self, form: str, vector: dict) -> bytes:
        plain = bytes.fromhex(vector["plain"]) if vector["plain"] is not None else pattern(vector["plain_len"])
        assert hashlib.sha256(plain).hexdigest() == vector["plain_sha256"], "plaintext hash"
        envelope = seal(vector, form, plain)
        assert len(envelope) == vector["envelope_len"], "envelope length"
        assert hashlib.sha256(envelope).hexdigest() == vector["envelope_sha256"], "envelope bytes"
        assert vector["envelope"] in (None, envelope.hex()), "envelope hex"
        sink = io.BytesIO()
        context = Context(**vector["context"])
        open_envelope(io.BytesIO(envelope), sink, form, vector_keys(vector, {}, context), context)
        assert sink.getvalue() == plain, "plaintext"
        return plain

    def malformed(self, vector: dict, change: dict) -> None:
        form = change["form"]
        plain = bytes.fromhex(vector["plain"]) if vector["plain"] is not None else pattern(vector["plain_len"])
        envelope = seal(vector, form, plain)
        for step in change["edits"]:
            envelope = edit(envelope, HEADER if form == "object" else 82, step)
        instead = change["override"] or {}
        context = Context(**(instead.get("context") or vector["context"]))
        sink = io.BytesIO()
        try:
            open_envelope(io.BytesIO(envelope), sink, form, vector_keys(vector, instead, context), context)
        except Refusal as refusal:
            assert str(refusal) == change["refusal"], f"refused as {refusal}, not {change['refusal']}"
            released = sink.getvalue()
            assert plain.startswith(released) and (not plain or len(released) < len(plain)), "released too much"
            return
        raise AssertionError("was opened")

    def arithmetic(self, file: dict) -> None:
        for pair in file["lengths"]:
            assert HEADER + segments_len(pair["plain"]) == pair["object"], pair
            assert plain_len_of_segments(pair["object"] - HEADER) == pair["plain"], pair
        for length in file["impossible_lengths"]:
            try:
                plain_len_of_segments(length - HEADER)
            except Refusal:
                continue
            raise AssertionError(f"length {length} was accepted")
        for entry in file["ranges"]:
            plan = range_plan(entry["plain_len"], entry["first"], entry["last"])
            assert all(entry[name] == value for name, value in plan.items()), entry


def check(path: str) -> int:
    with open(path, encoding="utf-8") as handle:
        file = json.load(handle)
    run = Check()
    vectors = {}
    for form in ("object", "compact"):
        for vector in file[form]:
            vectors[vector["name"]] = vector
            run.run(vector["name"], lambda: run.valid(form, vector))
    for change in file["malformed"]:
        run.run(f"{change['name']} ({change['base']})", lambda: run.malformed(vectors[change["base"]], change))
    run.run("lengths and ranges", lambda: run.arithmetic(file))
    print(f"{run.passed} passed, {run.failed} failed")
    return 1 if run.failed or not run.passed else 0


# Command line


def key_of_32_bytes(text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        # The text is a key: it is not repeated in the message.
        raise argparse.ArgumentTypeError("must be 64 hex digits")
    return key


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Reads Keyway envelopes (docs/envelope.md).")
    commands = parser.add_subparsers(dest="command", required=True)
    vectors = commands.add_parser("check", help="run the test vectors")
    vectors.add_argument("file")
    opener = commands.add_parser("open", help="open a stored envelope")
    keys = opener.add_mutually_exclusive_group(required=True)
    keys.add_argument("--kek-hex", type=key_of_32_bytes, help="unwrap the envelope's own key block with this KEK")
    keys.add_argument("--dek-hex", type=key_of_32_bytes, help="use this DEK")
    opener.add_argument("--zone", required=True)
    opener.add_argument("--tenant", help="absent is not empty")
    opener.add_argument("--domain", required=True)
    opener.add_argument("--form", choices=["auto", "object", "compact"], default="auto")
    opener.add_argument("--direction", choices=["at-rest", "request", "response"], default="at-rest")
    opener.add_argument("--profile", type=int, choices=PROFILES, default=1)
    opener.add_argument("--field")
    opener.add_argument("--object-id")
    opener.add_argument("--content-type")
    opener.add_argument("-o", "--output", help="written whole or not at all; default: standard output, as it verifies")
    opener.add_argument("file", help="`-` is standard input")
    return parser.parse_args()


def open_file(arguments: argparse.Namespace) -> None:
    context = Context(
        arguments.zone,
        arguments.tenant,
        arguments.domain,
        ["at-rest", "request", "response"].index(arguments.direction),
        arguments.profile,
        arguments.field,
        arguments.object_id,
        arguments.content_type,
    )

    def key_source(block: KeyBlock) -> Tuple[bytes, bytes]:
        if arguments.dek_hex is not None:
            return arguments.dek_hex, block.dek_id
        if block.mechanism == 0:
            raise Refusal("catalog-reference: this envelope needs --dek-hex")
        return block.unwrap(arguments.kek_hex, context.zone, context.tenant), block.dek_id

    source = sys.stdin.buffer if arguments.file == "-" else open(arguments.file, "rb")
    with source:
        if arguments.output is None:
            open_envelope(source, sys.stdout.buffer, arguments.form, key_source, context)
            sys.stdout.buffer.flush()
            return
        folder = os.path.dirname(os.path.abspath(arguments.output))
        descriptor, temporary = tempfile.mkstemp(dir=folder)
        try:
            with os.fdopen(descriptor, "wb") as sink:
                open_envelope(source, sink, arguments.form, key_source, context)
            os.replace(temporary, arguments.output)
        except BaseException:
            os.unlink(temporary)
            raise


def main() -> int:
    arguments = parse_arguments()
    try:
        if arguments.command == "check":
            return check(arguments.file)
        open_file(arguments)
        return 0
    except Refusal as refusal:
        print(f"refused: {refusal}", file=sys.stderr)
    except OSError as error:
        print(f"failed: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
