"""The Batch API of an OpenAI-compatible server on 127.0.0.1: files, batches, results, and what can go wrong.

    with BatchServer(lambda request: "the answer to " + request["messages"][-1]["content"]) as server:
        BatchAPI(api_key="k", base_url=server.base_url, first_poll_s=0.01)

A batch is answered when it has been looked at `polls` times. It is validated as OpenAI does: 50,000 requests and
200 MB at most, one model, unique `custom_id`s, the endpoint of the batch in each line, and the enqueued tokens of
all batches that have not ended below `enqueued_tokens`. The answer of a request is text, or `(status, body)`.
Faults to order: `expire` is how many requests of each batch in turn are answered before it expires; `hold` keeps
batches in progress until it is cleared; so many looks at a batch, `outages`, find a server that hangs up, and so many
downloads, `cut_downloads`, break off in the middle. `write_line` makes a line of a file of results.
`requests` counts the answers that were billed, `prompts` are what they asked.
"""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any

__all__ = ["BatchServer", "refusing_schemas"]

MOST_REQUESTS = 50_000
MOST_BYTES = 200_000_000
ENDED = {"completed", "expired", "cancelled", "failed"}


def refusing_schemas(reply):
    """Answers as `reply` does, where a request comes without a schema."""

    def plain(body):
        if "response_format" in body:
            return 400, {"error": {"message": "response_format is not supported"}}
        return reply(body)

    return plain


class BatchServer:
    """The server; a context manager."""

    def __init__(self, answer, *, polls=1, expire=(), enqueued_tokens=None, output_in_reverse=False):
        self.answer = answer
        self.polls = polls
        self.expire = iter(expire)
        self.enqueued_tokens = enqueued_tokens
        self.output_in_reverse = output_in_reverse
        self.hold = False
        self.answered_before_cancel = 0
        self.outages = 0
        self.cut_downloads = 0
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.looks: dict[str, int] = {}
        self.prompts: list[str] = []
        self.requests = 0
        self.write_line = lambda line: json.dumps(line).encode() + b"\n"
        self.problem: dict[str, Any] | None = None
        self._numbers = count(1)
        self._lock = threading.Lock()

    def __enter__(self):
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                if "/batches/" in self.path and server.outages:
                    server.outages -= 1
                    self.close_connection = True
                    return
                self.reply(*server.get(self.path))

            def do_POST(self):
                content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.reply(*server.post(self.path, content, self.headers.get("Content-Type", "")))

            def reply(self, status, body):
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if "/content" in self.path and server.cut_downloads:
                    server.cut_downloads -= 1
                    data = data[: len(data) // 2]
                    self.close_connection = True
                self.wfile.write(data)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def base_url(self):
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    def get(self, path):
        with self._lock:
            if found := re.fullmatch(r"/v1/files/([\w-]+)/content", path):
                return (200, self.files[found[1]]) if found[1] in self.files else not_found(found[1])
            if found := re.fullmatch(r"/v1/batches/([\w-]+)", path):
                if found[1] not in self.batches:
                    return not_found(found[1])
                self.look(found[1])
                return 200, self.batches[found[1]]
            if path.startswith("/v1/batches"):
                latest = list(reversed(self.batches.values()))
                return 200, {"object": "list", "data": latest, "has_more": False}
            return not_found(path)

    def post(self, path, content, content_type):
        with self._lock:
            if path == "/v1/files":
                return 200, self.take_file(content, content_type)
            if path == "/v1/batches":
                if self.problem is not None:
                    return 401, {"error": self.problem}
                batch = self.create(json.loads(content))
                return 200, batch
            if found := re.fullmatch(r"/v1/batches/([\w-]+)/cancel", path):
                batch = self.batches[found[1]]
                self.finish(batch, "cancelled", self.answered_before_cancel)
                return 200, batch
            return not_found(path)

    def take_file(self, content, content_type):
        boundary = b"--" + content_type.partition("boundary=")[2].encode()
        parts = {}
        for part in content.split(boundary)[1:-1]:
            head, _, body = part.partition(b"\r\n\r\n")
            name = re.search(rb'name="(\w+)"', head)[1].decode()
            parts[name] = body.removesuffix(b"\r\n")
        assert parts["purpose"] == b"batch"
        number = f"file-{next(self._numbers)}"
        self.files[number] = parts["file"]
        return {"id": number, "object": "file", "bytes": len(parts["file"]), "purpose": "batch"}

    def create(self, asked):
        assert asked["completion_window"] == "24h"
        number = f"batch_{next(self._numbers)}"
        batch = {
            "id": number,
            "object": "batch",
            "endpoint": asked["endpoint"],
            "input_file_id": asked["input_file_id"],
            "completion_window": "24h",
            "created_at": 1,
            "status": "in_progress",
            "metadata": asked.get("metadata"),
            "output_file_id": None,
            "error_file_id": None,
            "errors": None,
        }
        self.batches[number] = batch
        self.looks[number] = 0
        if problem := self.problem_of(batch):
            batch["status"] = "failed"
            batch["errors"] = {"object": "list", "data": [problem]}
        return batch

    def problem_of(self, batch):  # noqa: PLR0911 - one for each rule of the API
        content = self.files[batch["input_file_id"]]
        lines = [json.loads(line) for line in content.splitlines()]
        ids = [line["custom_id"] for line in lines]
        if not lines:
            return {"code": "empty_file", "message": "The file is empty."}
        if len(lines) > MOST_REQUESTS or len(content) > MOST_BYTES:
            return {"code": "file_too_large", "message": "The file is too large."}
        if len(set(ids)) < len(ids):
            return {"code": "duplicate_custom_id", "message": "A custom_id is there twice."}
        if {line["url"] for line in lines} != {batch["endpoint"]} or {line["method"] for line in lines} != {
            "POST"
        }:
            return {"code": "mismatched_url", "message": "A line is for another endpoint."}
        if len({line["body"]["model"] for line in lines}) > 1:
            return {"code": "mismatched_model", "message": "The lines name several models."}
        batch["tokens"] = sum(len(line["body"]["messages"][-1]["content"]) // 4 for line in lines)
        enqueued = sum(
            other.get("tokens", 0) for other in self.batches.values() if other["status"] not in ENDED
        )
        if self.enqueued_tokens is not None and enqueued > self.enqueued_tokens:
            return {"code": "token_limit_exceeded", "message": f"{enqueued} tokens are enqueued."}
        return None

    def look(self, number):
        batch = self.batches[number]
        if batch["status"] in ENDED or self.hold:
            return
        self.looks[number] += 1
        if self.looks[number] >= self.polls:
            answered = next(self.expire, None)
            self.finish(batch, "completed" if answered is None else "expired", answered)

    def finish(self, batch, status, answered):
        batch["status"] = status
        output, errors = [], []
        for index, line in enumerate(self.files[batch["input_file_id"]].splitlines()):
            request = json.loads(line)
            if answered is not None and index >= answered:
                problem = {"code": "batch_expired", "message": "This request could not be executed in time."}
                errors.append({"custom_id": request["custom_id"], "response": None, "error": problem})
                continue
            status_code, body = self.response_to(request["body"])
            response = {"status_code": status_code, "request_id": "r", "body": body}
            (output if status_code == 200 else errors).append(
                {
                    "id": f"line_{index}",
                    "custom_id": request["custom_id"],
                    "response": response,
                    "error": None,
                }
            )
        for name, lines in (("output_file_id", output), ("error_file_id", errors)):
            if lines:
                number = f"file-{next(self._numbers)}"
                if self.output_in_reverse:
                    lines.reverse()
                self.files[number] = b"".join(self.write_line(line) for line in lines)
                batch[name] = number

    def response_to(self, body):
        answer = self.answer(body)
        if isinstance(answer, tuple):
            return answer
        self.requests += 1
        self.prompts.append(body["messages"][-1]["content"])
        tokens = {"prompt_tokens": len(self.prompts[-1]) // 4, "completion_tokens": len(answer) // 4}
        message = {"role": "assistant", "content": answer}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return 200, {
            "id": "c",
            "object": "chat.completion",
            "model": body["model"],
            "choices": [choice],
            "usage": tokens,
        }


def not_found(name):
    return 404, {"error": {"message": f"No such thing: {name}", "type": "invalid_request_error"}}
