"""Owns a server as others meet it: a process, its clients, its load.

Standard library only. Not: which server, nor what its answers mean.
"""

import concurrent.futures
import http.client
import json
import re
import signal
import subprocess
import tempfile
import threading
import time
from typing import NamedTuple

from experiments.benchmarks.workers.protocol import status_bytes

_URL = re.compile(r"http://(127\.0\.0\.1:\d+)")
# So long may an answer take before its client gives up.
CLIENT_TIMEOUT_S = 120
STOP_SECONDS = 8


class Reply(NamedTuple):
    """What a client was told.

    Attributes:
        status: int, of HTTP; 0 = the server did not answer.
        content: bytes.
        seconds: float, from the request to the last byte.
    """

    status: int
    content: bytes
    seconds: float

    def json(self):
        return json.loads(self.content)


class Server:
    """A server process that prints its URL on 127.0.0.1 when it is ready.

    Args:
        command: list of str.

    Attributes:
        address: str, such as "127.0.0.1:8501".
        ready_seconds: float, from the start of the process to its URL.
        pid: int.

    Raises:
        OSError: if it ends before; the last line of its log says why.
    """

    def __init__(self, command):
        # Closed by `close`; a pipe that nobody reads would fill up.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self.started = time.perf_counter()
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        self.pid = self._process.pid
        for line in self._process.stdout:
            found = _URL.search(line)
            if found:
                self.address = found[1]
                break
        else:
            lines = self.log_lines()
            self.close()
            raise OSError(lines[-1] if lines else "the server did not start")
        self.ready_seconds = time.perf_counter() - self.started
        # What else it prints is read, so that it never waits for us.
        threading.Thread(target=self._process.stdout.read, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def is_alive(self):
        return self._process.poll() is None

    @property
    def resident_bytes(self):
        return status_bytes("VmRSS", self.pid)

    @property
    def peak_bytes(self):
        return status_bytes("VmHWM", self.pid)

    def log_lines(self):
        """Returns the non-empty lines of its standard error so far."""
        self._log.seek(0)
        text = self._log.read().decode(errors="replace")
        return [line for line in text.splitlines() if line.strip()]

    def close(self):
        """Stops the process."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


class Client:
    """One client, whose connection stays open from request to request.

    Args:
        address: str, host and port.
    """

    def __init__(self, address):
        self._connection = http.client.HTTPConnection(
            address, timeout=CLIENT_TIMEOUT_S
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._connection.close()

    def post(self, path, body):
        """Returns the Reply to a body of JSON.

        Args:
            path: str.
            body: bytes.
        """
        started = time.perf_counter()
        # A server may close an idle connection just when it is used again.
        for is_last in (False, True):
            is_used = self._connection.sock is not None
            try:
                reply = self._ask(path, body)
                content = reply.read()
            except (OSError, http.client.HTTPException):
                self._connection.close()
                if is_last or not is_used:
                    return Reply(0, b"", time.perf_counter() - started)
            else:
                return Reply(
                    reply.status, content, time.perf_counter() - started
                )

    def first_piece_seconds(self, path, body):
        """Returns seconds until the first text of a streamed chat.

        Args:
            path: str.
            body: bytes, which asks to stream.

        Raises:
            OSError: if no text comes.
        """
        started = time.perf_counter()
        reply = self._ask(path, body)
        for line in reply:
            if line.startswith(b"data: {"):
                choices = json.loads(line[6:]).get("choices")
                if choices and choices[0]["delta"].get("content"):
                    seconds = time.perf_counter() - started
                    reply.read()
                    return seconds
        raise OSError(f"{path}: no text came; status {reply.status}.")

    def _ask(self, path, body):
        self._connection.request(
            "POST", path, body, {"Content-Type": "application/json"}
        )
        return self._connection.getresponse()


def closed_loop(address, requests, *, num_clients):
    """Asks all, each client one after the other: as soon as it is answered.

    Args:
        address: str.
        requests: iterable of (path, body).
        num_clients: int.

    Returns:
        seconds from the first request to the last answer, and the list of
        Reply in the order of `requests`.
    """
    waiting = enumerate(requests)
    lock = threading.Lock()
    replies = {}

    def work():
        with Client(address) as client:
            while True:
                with lock:
                    number, request = next(waiting, (None, None))
                if request is None:
                    return
                replies[number] = client.post(*request)

    started = time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(num_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    return seconds, [replies[number] for number in sorted(replies)]


def open_loop(address, requests, *, tell, after, max_clients=512):
    """Asks at given times, whether or not earlier requests are answered.

    Args:
        address: str.
        requests: iterable of (seconds after the start, path, body), in order
            of time.
        tell: function of (number, Reply), called by one thread at a time.
        after: function, called when the last request has been sent; answers
            may still come.
        max_clients: int. What comes while so many wait is not sent.

    Returns:
        what `after` returns, and how many requests were not sent.
    """
    idle, lock = [], threading.Lock()
    places = threading.Semaphore(max_clients)
    num_unsent = 0

    def work(number, path, body):
        with lock:
            client = idle.pop() if idle else Client(address)
        reply = client.post(path, body)
        with lock:
            idle.append(client)
            tell(number, reply)
        places.release()

    started = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(max_clients) as pool:
        for number, (due, path, body) in enumerate(requests):
            delay = due - (time.perf_counter() - started)
            if delay > 0:
                time.sleep(delay)
            if places.acquire(blocking=False):
                pool.submit(work, number, path, body)
            else:
                num_unsent += 1
        result = after()
    for client in idle:
        client.close()
    return result, num_unsent
