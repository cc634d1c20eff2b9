#!/usr/bin/env python3
"""A service that keeps its orders in an object store. It knows the store's URL and nothing of encryption.

Workers write orders of many sizes and read them back over connections that they keep; slow streams send and receive
for many seconds. Whatever fails is counted, nothing is tried twice: not a status, not a byte, not a connection
may be lost. Port 9000: GET /status gives the counts, POST /audit reads every order that is kept. The archive is written first
and never again; of the rest each worker keeps its latest.
"""

import hashlib
import http.client
import http.server
import json
import os
import random
import threading
import time
import urllib.parse

STORE = urllib.parse.urlsplit(os.environ.get("STORE_URL", "http://127.0.0.1:8080/objects"))
WORKERS = int(os.environ.get("WORKERS", "4"))
SLOW_STREAM_S = float(os.environ.get("SLOW_STREAM_SECONDS", "20"))
PAUSE_S = float(os.environ.get("PAUSE_SECONDS", "0.01"))
# Around the edges of whatever the layers below might cut a body into.
SIZES = [0, 1, 100, 1000, 4096, 16383, 16384, 16385, 65536, 300_000]
SLOW_CHUNK, SLOW_CHUNKS = 50_000, 40
ARCHIVE, ORDERS_KEPT, STREAMS_KEPT = 200, 500, 20
TIMEOUT_S = 30
FAILURES_KEPT = 20


class Book:
    """What was written, and how it went. Shared by all threads."""

    def __init__(self):
        self.lock = threading.Lock()
        self.orders = {}
        self.counts = {"written": 0, "read": 0, "streams": 0, "streams_open": 0, "connections": 0, "failed": 0}
        self.failures = []

    def add(self, name, by=1):
        with self.lock:
            self.counts[name] += by

    def forget(self, name):
        """Before it is overwritten: until `wrote`, what the store has under this name is nobody's to judge."""
        with self.lock:
            self.orders.pop(name, None)

    def keeps(self, name, digest):
        with self.lock:
            return self.orders.get(name) == digest

    def wrote(self, name, digest):
        with self.lock:
            self.orders[name] = digest
            self.counts["written"] += 1

    def failed(self, what, why):
        with self.lock:
            self.counts["failed"] += 1
            self.failures = [*self.failures, f"{time.strftime('%H:%M:%S')} {what}: {why}"][-FAILURES_KEPT:]

    def any_order(self):
        with self.lock:
            return random.choice(list(self.orders.items())) if self.orders else None

    def status(self):
        with self.lock:
            return {**self.counts, "orders": len(self.orders), "failures": list(self.failures)}


class Client:
    """One kept connection to the store. Made again after a failure, and each time is counted."""

    def __init__(self, book):
        self.book = book
        self.connection = None

    def connect(self):
        if self.connection is None:
            self.connection = http.client.HTTPConnection(STORE.hostname, STORE.port or 80, timeout=TIMEOUT_S)
            self.connection.connect()
            self.book.add("connections")
        return self.connection

    def drop(self):
        if self.connection is not None:
            self.connection.close()
        self.connection = None

    def put(self, name, length, chunks):
        """Sends `chunks`, `length` bytes together; gives the SHA-256 of what was sent."""
        digest, connection = hashlib.sha256(), self.connect()
        connection.putrequest("PUT", f"{STORE.path}/{name}")
        connection.putheader("Content-Length", str(length))
        connection.endheaders()
        for chunk in chunks:
            connection.send(chunk)
            digest.update(chunk)
        response = connection.getresponse()
        body = response.read()
        if not 200 <= response.status < 300:
            raise ValueError(f"PUT gave {response.status} {body[:300]!r}")
        return digest.hexdigest()

    def get(self, name, pause_s=0.0):
        """Reads it whole; gives its SHA-256. http.client raises if it ends before its Content-Length."""
        digest, connection = hashlib.sha256(), self.connect()
        connection.request("GET", f"{STORE.path}/{name}")
        response = connection.getresponse()
        if response.status != 200:
            raise ValueError(f"GET gave {response.status} {response.read()[:300]!r}")
        while chunk := response.read(SLOW_CHUNK):
            digest.update(chunk)
            time.sleep(pause_s)
        if response.length:
            raise ValueError(f"GET ended {response.length} bytes early")
        return digest.hexdigest()


def attempt(book, client, what, action):
    """Runs `action` once; a failure is counted and costs the connection."""
    try:
        return action()
    except (OSError, http.client.HTTPException, ValueError) as error:
        book.failed(what, repr(error))
        client.drop()
        time.sleep(0.2)  # A store that is gone should not fill the log.
        return None


def write(book, client, name, length, chunks):
    """True if it is stored."""
    book.forget(name)
    digest = attempt(book, client, f"PUT {name}", lambda: client.put(name, length, chunks))
    if digest is not None:
        book.wrote(name, digest)
    return digest is not None


def read(book, client, name, expected, pause_s=0.0):
    digest = attempt(book, client, f"GET {name}", lambda: client.get(name, pause_s))
    if digest is None:
        return
    if digest != expected and book.keeps(name, expected):
        book.failed(f"GET {name}", "the bytes are not those that were written")
    book.add("read")


def worker(book, number):
    """Writes its next order, reads any order, without end."""
    client, serial = Client(book), 0
    while True:
        body = os.urandom(random.choice(SIZES))
        write(book, client, f"order-{number}-{serial % ORDERS_KEPT}", len(body), [body] if body else [])
        if order := book.any_order():
            read(book, client, *order)
        serial += 1
        time.sleep(PAUSE_S)


def slow_stream(book, number):
    """An upload, then a download of it, that each take SLOW_STREAM_S."""
    client, pause_s, serial = Client(book), SLOW_STREAM_S / SLOW_CHUNKS, 0

    def chunks():
        for _ in range(SLOW_CHUNKS):
            yield os.urandom(SLOW_CHUNK)
            time.sleep(pause_s)

    while True:
        name = f"stream-{number}-{serial % STREAMS_KEPT}"
        book.add("streams_open")
        if write(book, client, name, SLOW_CHUNK * SLOW_CHUNKS, chunks()):
            read(book, client, name, book.orders[name], pause_s)
            book.add("streams")
        book.add("streams_open", -1)
        serial += 1


def audit(book):
    """Reads every order that is kept; says how many did not come back as they were."""
    client, wrong, checked = Client(book), [], 0
    with book.lock:
        orders = dict(book.orders)
    for name, expected in orders.items():
        try:
            digest = client.get(name)
        except (OSError, http.client.HTTPException, ValueError) as error:
            digest = repr(error)
            client.drop()
        checked += 1
        if digest != expected and book.keeps(name, expected):
            wrong.append(f"{name}: {digest}")
    client.drop()
    archived = sum(name.startswith("archive-") for name in orders)
    return {"checked": checked, "archived": archived, "wrong": len(wrong), "first_wrong": wrong[:5]}


def serve(book):
    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, content):
            body = json.dumps(content).encode() + b"\n"
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.answer(book.status()) if self.path == "/status" else self.send_error(404)

        def do_POST(self):
            self.answer(audit(book)) if self.path == "/audit" else self.send_error(404)

        def log_message(self, *_):
            pass

    http.server.ThreadingHTTPServer(("0.0.0.0", 9000), Handler).serve_forever()


def wait_for_store():
    """Any answer will do. Only here is something tried again: nothing says which of the two starts first."""
    while True:
        connection = http.client.HTTPConnection(STORE.hostname, STORE.port or 80, timeout=2)
        try:
            connection.request("HEAD", f"{STORE.path}/none")
            if connection.getresponse().status < 500:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.2)


def main():
    book = Book()
    print("orders: waiting for the store at", STORE.geturl(), flush=True)
    wait_for_store()
    print("orders: open for business", flush=True)
    archivist = Client(book)
    for number in range(ARCHIVE):
        body = os.urandom(SIZES[number % len(SIZES)])
        write(book, archivist, f"archive-{number}", len(body), [body] if body else [])
    archivist.drop()
    jobs = [(worker, (book, n)) for n in range(WORKERS)]
    jobs += [(slow_stream, (book, n)) for n in range(2)]
    for job, arguments in jobs:
        threading.Thread(target=job, args=arguments, daemon=True).start()
    serve(book)


if __name__ == "__main__":
    main()
