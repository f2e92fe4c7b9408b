"""Completions of an OpenAI-style server, with the clock running."""

from __future__ import annotations

import http.client
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# The longest wait for one piece of an answer.
SILENCE_S_MAX = 60.0


@dataclass(frozen=True)
class Answer:
    status: int
    # What was generated; of an error, what the server said.
    text: str
    token_ids: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    # From sending the request to the first piece of text, and to the end.
    first_s: float = 0.0
    total_s: float = 0.0
    kv_transfer_params: dict[str, Any] | None = None


@dataclass(frozen=True)
class Server:
    host: str
    port: int

    def get(self, path: str, timeout_s: float = 5.0) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        finally:
            connection.close()

    def answers(self, path: str) -> bool:
        """Whether a GET succeeds now."""
        try:
            return self.get(path)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def complete(self, prompt: str | Sequence[int], token_count: int, **options: Any) -> Answer:
        """A completion in one piece: greedy, and of exactly ``token_count`` tokens."""
        start = time.monotonic()
        connection, response = self._post(prompt, token_count, options)
        try:
            body = response.read().decode(errors="replace")
        finally:
            connection.close()
        total_s = time.monotonic() - start
        if response.status != 200:
            return Answer(response.status, body, total_s=total_s)
        document = json.loads(body)
        choice = document["choices"][0]
        return Answer(
            response.status,
            choice["text"],
            choice.get("token_ids") or [],
            document["usage"]["prompt_tokens"],
            total_s,
            total_s,
            document.get("kv_transfer_params"),
        )

    def stream(self, prompt: str | Sequence[int], token_count: int, **options: Any) -> Answer:
        """A completion in pieces, to see when the first one comes."""
        start = time.monotonic()
        options = {**options, "stream": True, "stream_options": {"include_usage": True}}
        connection, response = self._post(prompt, token_count, options)
        text, first_s, prompt_tokens = "", 0.0, 0
        token_ids: list[int] = []
        try:
            if response.status != 200:
                return Answer(response.status, response.read().decode(errors="replace"))
            for line in response:
                if not line.startswith(b"data: {"):
                    continue
                piece = json.loads(line[len(b"data: ") :])
                if "error" in piece:
                    return Answer(500, json.dumps(piece["error"]))
                for choice in piece["choices"]:
                    first_s = first_s or time.monotonic() - start
                    text += choice["text"]
                    token_ids += choice.get("token_ids") or []
                if piece.get("usage"):
                    prompt_tokens = piece["usage"]["prompt_tokens"]
        finally:
            connection.close()
        return Answer(200, text, token_ids, prompt_tokens, first_s, time.monotonic() - start)

    def open(self, prompt: str | Sequence[int], token_count: int, **options: Any) -> http.client.HTTPConnection:
        """Sends a request and does not wait for its answer; closing the connection aborts it."""
        return self._send(prompt, token_count, {**options, "stream": True})

    def _post(
        self, prompt: str | Sequence[int], token_count: int, options: Mapping[str, Any]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = self._send(prompt, token_count, options)
        return connection, connection.getresponse()

    def _send(
        self, prompt: str | Sequence[int], token_count: int, options: Mapping[str, Any]
    ) -> http.client.HTTPConnection:
        body = {
            "model": "m",
            "prompt": prompt,
            "max_tokens": token_count,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            **options,
        }
        headers = {"Content-Type": "application/json", "x-request-id": str(uuid.uuid4())}
        connection = http.client.HTTPConnection(self.host, self.port, timeout=SILENCE_S_MAX)
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        return connection


def fresh_salt() -> dict[str, str]:
    """An option that no other request's cache matches: the engine computes everything."""
    return {"cache_salt": uuid.uuid4().hex}
