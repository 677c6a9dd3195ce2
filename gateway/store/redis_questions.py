"""Questions between gateways over Redis: published to all, answered on a channel of who asks.

One connection per gateway is subscribed to both. While it is down the gateway neither answers nor asks, and the others
find out in the slower way (gateway/sessions/idleness.py). Rejected: requests from gateway to gateway. They need an
address of each worker process, which one port for all of them does not give, and a way through each network policy.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

import orjson
from redis.exceptions import RedisError

from gateway.core.backoff import jittered
from gateway.core.errors import StoreUnavailableError
from gateway.core.model import SessionId
from gateway.core.questions import InUse

logger = logging.getLogger(__name__)

_MAX_BYTES = 4096  # of a message; one has a session's id and a gateway's name
_READ_S = 5.0  # for one read of the subscription, which then begins another
_RETRY_S = 1.0  # between two subscriptions, at most

Call = Callable[[Callable[[Any], Awaitable[Any]]], Awaitable[Any]]


class _Asked:
    """A question under way: the answers so far, and `done` once no further one matters."""

    def __init__(self, others: Collection[str]) -> None:
        self.others = others
        self.answers: dict[str, bool] = {}
        self.done = asyncio.Event()

    def take(self, by: str, in_use: bool) -> None:
        if by in self.others:
            self.answers[by] = in_use
        if in_use or len(self.answers) == len(self.others):
            self.done.set()


class RedisQuestions:
    """Implements gateway.core.questions.PeerQuestions.

    `subscribe` makes a subscription that is not connected yet; `call` is RedisExchanges.call.
    """

    def __init__(self, root: str, call: Call, subscribe: Callable[[], Any]) -> None:
        self._asked = f"{root}asked"
        self._answers = f"{root}answers:"
        self._call = call
        self._subscribe = subscribe
        self._under_way: dict[str, _Asked] = {}
        self._holder = ""  # set while subscribed

    async def listen(self, holder: str, in_use: InUse) -> None:
        """Answer the others, as gateway `holder`, until cancelled; after an outage subscribe again."""
        while True:
            try:
                await self._listen(holder, in_use)
            except (RedisError, OSError, TimeoutError, RuntimeError, StoreUnavailableError) as error:
                # RuntimeError: uvloop's, for a write after the server has closed the connection.
                logger.debug("questions of other gateways are not heard: %r", error)
            await asyncio.sleep(jittered(_RETRY_S))

    async def ask(self, session_id: SessionId, others: Collection[str], timeout: float) -> Mapping[str, bool]:
        """What `others` answer, within `timeout` seconds; nothing while this gateway could not hear them."""
        if not self._holder:
            return {}
        number = uuid.uuid4().hex
        asked = self._under_way[number] = _Asked(frozenset(others))
        question = orjson.dumps({"id": number, "by": self._holder, "session": session_id})
        try:
            await self._call(lambda redis: redis.publish(self._asked, question))
            async with asyncio.timeout(timeout):
                await asked.done.wait()
        except TimeoutError:
            pass
        finally:
            del self._under_way[number]
        return asked.answers

    async def _listen(self, holder: str, in_use: InUse) -> None:
        subscription = self._subscribe()
        own = self._answers + holder
        try:
            await subscription.subscribe(self._asked, own)
            while True:
                message = await subscription.get_message(timeout=_READ_S)
                if message is None:
                    continue
                if message["type"] == "subscribe":
                    if message["channel"].decode() == own:  # the second of two: both stand
                        self._holder = holder
                elif message["type"] == "message" and len(message["data"]) <= _MAX_BYTES:
                    await self._heard(message["channel"].decode() == own, message["data"], holder, in_use)
        finally:
            self._holder = ""
            await subscription.aclose()

    async def _heard(self, is_answer: bool, data: bytes, holder: str, in_use: InUse) -> None:
        try:
            message = orjson.loads(data)
            number, by = str(message["id"]), str(message["by"])
            if is_answer:
                if (asked := self._under_way.get(number)) is not None:
                    asked.take(by, message["inUse"] is not False)
                return
            session_id = SessionId(str(message["session"]))
        except (ValueError, TypeError, KeyError) as error:
            logger.debug("a message of another gateway was not understood: %r", error)
            return
        if by != holder:
            answer = orjson.dumps({"id": number, "by": holder, "inUse": in_use(session_id)})
            await self._call(lambda redis: redis.publish(self._answers + by, answer))
