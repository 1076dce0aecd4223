"""Runs one function of a sandbox: HTTP/1.1 and WebSocket on a unix socket.

It is sent to the sandbox's python3 (3.9 or later, standard library alone) by
s0's API server, which is its only client and has parsed and bounded every
request already. What the function raises or prints goes to this process's
stderr and stdout, which the sandbox's owner can read; a caller learns one code
in the header S0-Function-Error and nothing else.
"""

import asyncio
import base64
import hashlib
import inspect
import json
import linecache
import os
import re
import socket
import sys
import threading
import traceback
import types
import urllib.parse

MAX_HEAD = 256 << 10  # more than the API server lets through
MAX_BODY = 8 << 20  # of a request, and of a WebSocket message
MAX_OUTPUT = 4 << 20  # of an answer that is no stream
MAX_QUEUED = 16  # WebSocket messages that the function has not asked for yet
MAX_STUCK = 16  # calls that went on after their time; then only a new process helps
CLOSE_WAIT = 2  # seconds for the other half of a WebSocket's goodbye

FAILED, TIMED_OUT, BUSY = "function_failed", "function_timeout", "function_concurrency_exceeded"
NO_WEBSOCKET, TOO_LARGE = "function_no_websocket", "request_too_large"

TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
NOT_THEIRS = {"connection", "content-length", "date", "keep-alive", "trailer", "transfer-encoding", "upgrade"}


class Headers(dict):
    """A request's headers by lower-case name, found in any case."""

    def __getitem__(self, name):
        return super().__getitem__(name.lower())

    def __contains__(self, name):
        return isinstance(name, str) and super().__contains__(name.lower())

    def get(self, name, default=None):
        return super().get(name.lower(), default)


class Refusal(Exception):
    """Ends a request with a code for its caller."""


class Closed(ConnectionError):
    """The caller is not there any more."""


async def send(writer, data):
    try:
        writer.write(data)
        await writer.drain()
    except ConnectionError as e:
        raise Closed("the caller is gone") from e


class Request:
    """What the API server sent."""

    def __init__(self, method, target, headers, body):
        self.method, self.body = method, body
        path, _, self.raw_query = target.partition("?")
        self.path = urllib.parse.unquote(path)
        self.route = headers.pop("s0-route", "")
        self.timeout = float(headers.pop("s0-timeout", "30"))
        self.headers = headers

    def wants(self, media_type):
        return media_type in self.headers.get("accept", "").lower()

    def upgrades(self):
        return self.headers.get("upgrade", "").lower() == "websocket"

    def document(self, service):
        """The object that the function is called with."""
        return {
            "service_id": service, "route_id": self.route, "method": self.method, "path": self.path, "raw_query": self.raw_query,
            "headers": self.headers, "body_base64": base64.b64encode(self.body).decode(),
        }


async def read_request(reader):
    """Reads a request, or returns None at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = Headers()
    for line in lines:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip()
        headers[name] = headers[name] + ", " + value if name in headers else value
    return Request(method, target, headers, await read_body(reader, headers))


async def read_body(reader, headers):
    if "transfer-encoding" not in headers:
        length = int(headers.get("content-length", "0"))
        if length > MAX_BODY:
            raise Refusal(TOO_LARGE)
        return await reader.readexactly(length)
    body = bytearray()
    while True:
        length = int(await reader.readuntil(b"\r\n"), 16)
        if len(body) + length > MAX_BODY:
            raise Refusal(TOO_LARGE)
        body += (await reader.readexactly(length + 2))[:-2]
        if length == 0:
            return bytes(body)


def head_of(status, headers):
    lines = ["HTTP/1.1 %d %s" % (status, "Switching Protocols" if status == 101 else "Function")]
    lines += ["%s: %s" % pair for pair in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class Answer:
    """What a function returned, checked."""

    def __init__(self, result):
        self.status, self.headers, self.body = 200, [], result
        if is_response(result):
            self.status, self.body = result.get("status", 200), result.get("body")
            self.headers = list(checked(result.get("headers") or {}))
        if not 200 <= self.status <= 599:
            raise ValueError("status %r: want 200 to 599" % self.status)

    def has(self, name):
        return any(n.lower() == name for n, _ in self.headers)

    def encode(self):
        """The body as bytes, and its type among the headers."""
        if self.body is None:
            body, kind = b"", None
        elif isinstance(self.body, str):
            body, kind = self.body.encode(), "text/plain; charset=utf-8"
        elif isinstance(self.body, (bytes, bytearray, memoryview)):
            body, kind = bytes(self.body), "application/octet-stream"
        else:
            body, kind = json.dumps(self.body, allow_nan=False).encode(), "application/json"
        if len(body) > MAX_OUTPUT:
            raise ValueError("an answer of %d bytes: at most %d are possible" % (len(body), MAX_OUTPUT))
        if kind and not self.has("content-type"):
            self.headers.append(("Content-Type", kind))
        return body


def is_response(result):
    """Tells {status, headers, body} from any other JSON object."""
    if not isinstance(result, dict) or not set(result) <= {"status", "headers", "body"}:
        return False
    if "status" in result:
        return type(result["status"]) is int
    return "body" in result


def checked(headers):
    for name, values in headers.items():
        for value in values if isinstance(values, (list, tuple)) else [values]:
            value = str(value)
            if not TOKEN.fullmatch(name) or any(c in value for c in "\r\n\0") or not value.isascii():
                raise ValueError("header %r: not valid" % name)
            if name.lower() not in NOT_THEIRS and not name.lower().startswith("s0-"):
                yield name, value


def event(item):
    """One server-sent event: its fields, or anything as its data."""
    if isinstance(item, (bytes, bytearray)):
        return bytes(item)  # framed by the function itself
    fields = item if isinstance(item, dict) and "data" in item and set(item) <= {"event", "id", "retry", "data"} else {"data": item}
    lines = []
    for name in ("event", "id", "retry", "data"):
        if name in fields:
            value = fields[name]
            text = value if isinstance(value, str) else json.dumps(value)
            lines += ["%s: %s" % (name, line) for line in text.splitlines() or [""]]
    return ("\n".join(lines) + "\n\n").encode()


class Runner:
    def __init__(self, config):
        self.service, self.limit = config["service"], config["max_concurrency"]
        self.running, self.stuck = 0, 0
        self.handler = load(base64.b64decode(config["code"]).decode(), config["handler"])
        self.takes_socket = self.handler is not None and takes(self.handler, 2)
        self.needs_socket = self.handler is not None and not takes(self.handler, 1)

    async def connection(self, reader, writer):
        try:
            while await self.request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the caller is gone
        finally:
            writer.close()

    async def request(self, reader, writer):
        """Serves one request and tells whether another may follow."""
        try:
            request = await read_request(reader)
            if request is None:
                return False
            if self.limit and self.running >= self.limit:
                raise Refusal(BUSY)
            self.running += 1
            try:
                return await self.serve(request, reader, writer)
            finally:
                self.running -= 1
        except Refusal as refusal:
            await send(writer, head_of(500, [("S0-Function-Error", str(refusal)), ("Content-Length", "0"), ("Connection", "close")]))
            if self.stuck >= min(MAX_STUCK, self.limit or MAX_STUCK):
                os._exit(70)  # whoever asks next starts a new one
            return False

    async def serve(self, request, reader, writer):
        if self.handler is None:
            raise Refusal(FAILED)
        if request.upgrades():
            await self.websocket(request, reader, writer)
            return False
        arguments = [request.document(self.service)] + ([None] if self.needs_socket else [])
        try:
            answer = Answer(await self.call(request.timeout, self.handler, *arguments))
            streams = request.wants("text/event-stream")
            iterator = iterator_of(answer.body, streams)
            if iterator is not None and not streams:
                answer.body, iterator = [item async for item in self.items(iterator, request.timeout)], None
            body = b"" if iterator is not None else answer.encode()
        except Refusal:
            raise
        except BaseException:
            traceback.print_exc()
            raise Refusal(FAILED) from None
        if iterator is not None:
            await self.events(request, writer, answer, iterator)
            return False
        if answer.status not in (204, 304):
            answer.headers.append(("Content-Length", str(len(body))))
        await send(writer, head_of(answer.status, answer.headers) + (b"" if request.method == "HEAD" or answer.status in (204, 304) else body))
        return True

    async def events(self, request, writer, answer, iterator):
        if not answer.has("content-type"):
            answer.headers.append(("Content-Type", "text/event-stream"))
        answer.headers += [("Cache-Control", "no-cache"), ("Connection", "close"), ("Transfer-Encoding", "chunked")]
        ended = False
        try:
            await send(writer, head_of(answer.status, answer.headers))
            async for item in self.items(iterator, request.timeout):
                chunk = event(item)
                if chunk:
                    await send(writer, b"%x\r\n%b\r\n" % (len(chunk), chunk))
            ended = True
        except (Refusal, Closed):
            pass  # broken off, which the caller can tell from the end
        except BaseException:
            traceback.print_exc()
        finally:
            await self.dispose(iterator)
        if ended:  # not before: who sees it may ask again, and finds the place free
            await send(writer, b"0\r\n\r\n")

    async def dispose(self, iterator):
        """Lets a generator that is not wanted any more tidy up."""
        close = getattr(iterator, "aclose", None) or getattr(iterator, "close", None)
        if close is None:
            return
        try:
            await self.call(CLOSE_WAIT, close)
        except Exception:
            traceback.print_exc()

    async def items(self, iterator, timeout):
        """Every item, each of which has to come in time."""
        end = object()
        while True:
            if hasattr(iterator, "__anext__"):
                try:
                    item = await asyncio.wait_for(iterator.__anext__(), timeout)
                except StopAsyncIteration:
                    return
                except asyncio.TimeoutError:
                    raise Refusal(TIMED_OUT) from None
            else:
                item = await self.call(timeout, next, iterator, end)
                if item is end:
                    return
            yield item

    async def call(self, timeout, function, *arguments):
        """Calls a function, a blocking one in a thread of its own."""
        try:
            if inspect.iscoroutinefunction(function):
                return await asyncio.wait_for(function(*arguments), timeout)
            result = await asyncio.wait_for(self.in_thread(function, arguments), timeout)
            if inspect.isawaitable(result):
                result = await asyncio.wait_for(result, timeout)
            return result
        except asyncio.TimeoutError:
            print("the function did not answer within %gs" % timeout, file=sys.stderr)
            raise Refusal(TIMED_OUT) from None

    def in_thread(self, function, arguments):
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def settle(result, failure):
            if future.cancelled():  # out of time: the call has kept its place until now
                self.running -= 1
                self.stuck -= 1
            elif failure is not None:
                future.set_exception(failure)
            else:
                future.set_result(result)

        def work():
            result, failure = None, None
            try:
                result = function(*arguments)
            except (StopIteration, SystemExit, KeyboardInterrupt) as e:  # which mean something to asyncio
                failure = RuntimeError("the function raised %r" % e)
            except BaseException as e:
                failure = e
            loop.call_soon_threadsafe(settle, result, failure)

        def cancelled(f):
            if f.cancelled():
                self.running += 1
                self.stuck += 1

        future.add_done_callback(cancelled)
        threading.Thread(target=work, daemon=True).start()
        return future

    async def websocket(self, request, reader, writer):
        if not self.takes_socket or not inspect.iscoroutinefunction(self.handler):
            raise Refusal(NO_WEBSOCKET)
        key = request.headers.get("sec-websocket-key", "")
        accept = base64.b64encode(hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()).decode()
        await send(writer, head_of(101, [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept)]))
        ws = WebSocket(reader, writer)
        pump = asyncio.ensure_future(ws._pump())
        code, reason = 1000, ""
        try:
            await self.handler(request.document(self.service), ws)
        except Closed:
            pass
        except BaseException:
            traceback.print_exc()
            code, reason = 1011, "function failed"
        try:
            await ws.close(code, reason)
            await asyncio.wait_for(asyncio.shield(pump), CLOSE_WAIT)
        except (Closed, asyncio.TimeoutError):
            pass
        pump.cancel()


class WebSocket:
    """The caller's end of a WebSocket.

    message = await ws.recv()   str or bytes, None when it is closed
    async for message in ws     until it is closed
    await ws.send(message)      str, bytes, or anything else as JSON
    await ws.close(code, reason)
    """

    def __init__(self, reader, writer):
        self._reader, self._writer = reader, writer
        self._queue = asyncio.Queue(MAX_QUEUED)
        self._ended = False  # nothing more comes
        self._closed = False  # nothing more goes

    async def recv(self):
        if self._ended and self._queue.empty():
            return None
        message = await self._queue.get()
        if message is None:
            self._queue.put_nowait(None)  # for whoever else waits
        return message

    receive = recv

    def __aiter__(self):
        return self

    async def __anext__(self):
        message = await self.recv()
        if message is None:
            raise StopAsyncIteration
        return message

    async def send(self, message):
        if isinstance(message, (bytes, bytearray, memoryview)):
            return await self._frame(2, bytes(message))
        await self._frame(1, (message if isinstance(message, str) else json.dumps(message)).encode())

    async def close(self, code=1000, reason=""):
        if not self._closed:
            await self._frame(8, code.to_bytes(2, "big") + reason.encode()[:123])
            self._closed = True

    async def _frame(self, opcode, payload):
        if self._closed:
            raise Closed("the WebSocket is closed")
        n = len(payload)
        length = bytes([n]) if n < 126 else b"\x7e" + n.to_bytes(2, "big") if n < 1 << 16 else b"\x7f" + n.to_bytes(8, "big")
        await send(self._writer, bytes([0x80 | opcode]) + length + payload)

    async def _pump(self):
        """Reads until the end, answers what is the protocol's own."""
        code = 1006
        try:
            code = await self._read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._ended = True
            if self._queue.empty():
                self._queue.put_nowait(None)
            try:
                await self.close(1000 if code == 1006 else code)
            except Closed:
                pass

    async def _read(self):
        """Delivers messages; returns the code to close with."""
        message, kind = bytearray(), 0
        while True:
            first, second = await self._reader.readexactly(2)
            final, opcode, n = first & 0x80, first & 0x0F, second & 0x7F
            if first & 0x70 or not second & 0x80 or (opcode >= 8 and (n > 125 or not final)):
                return 1002
            if n >= 126:
                n = int.from_bytes(await self._reader.readexactly(2 if n == 126 else 8), "big")
            if len(message) + n > MAX_BODY:
                return 1009
            mask = await self._reader.readexactly(4)
            payload = unmask(await self._reader.readexactly(n), mask)
            if opcode == 8:
                return 1000
            if opcode == 9 and not self._closed:
                await self._frame(10, payload)
            if opcode >= 8:
                continue
            if opcode > 2 or (opcode == 0) != bool(kind):
                return 1002
            kind = kind or opcode
            message += payload
            if final:
                try:
                    await self._queue.put(message.decode() if kind == 1 else bytes(message))
                except UnicodeDecodeError:
                    return 1007
                message, kind = bytearray(), 0


def unmask(payload, mask):
    n = len(payload)
    key = (mask * (n // 4 + 1))[:n]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(n, "big")


def iterator_of(body, streams):
    """What yields a body piece by piece; a plain collection only does for a stream."""
    if isinstance(body, (str, bytes, bytearray, memoryview, dict)):
        return None
    if hasattr(body, "__aiter__"):
        return body.__aiter__()
    if hasattr(body, "__next__") or streams and hasattr(body, "__iter__"):
        return iter(body)
    return None


def takes(function, count):
    """Whether a function can be called with so many arguments."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # a builtin, which doesn't say
        return count == 1
    return True


def load(code, name):
    """The function, or None when there is none; then stderr says why."""
    module = types.ModuleType("function")
    module.__file__ = "function.py"
    sys.modules["function"] = module
    linecache.cache["function.py"] = (len(code), None, code.splitlines(True), "function.py")
    try:
        exec(compile(code, "function.py", "exec"), module.__dict__)
        function = module
        for part in name.split("."):
            function = getattr(function, part)
        if not callable(function):
            raise TypeError("%s can't be called" % name)
        return function
    except BaseException:
        traceback.print_exc()
        return None


async def main(config):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind("\0" + config["socket"][1:])
    except OSError:
        sys.exit("another process serves this function already")
    runner = Runner(config)
    server = await asyncio.start_unix_server(runner.connection, sock=listener, limit=MAX_HEAD)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    settings = json.loads(sys.stdin.buffer.readline())
    sys.stdin = open(os.devnull)
    os.dup2(sys.stdin.fileno(), 0)
    asyncio.run(main(settings))
