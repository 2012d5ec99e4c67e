"""The exchange, without Ray: it is a plain class."""

from __future__ import annotations

import asyncio

from sparsearch.workers.execution.message_broker import MessageBroker
from sparsearch.workers.execution.news import (
    JobKey,
    JobLost,
    JobTold,
    RankingAsked,
    WorkerDied,
    WorkerSilent,
)

KEY = JobKey(0, 1)


def during(scenario, patience=60.0):
    async def run():
        return await asyncio.wait_for(scenario(MessageBroker(patience)), 20)

    return asyncio.run(run())


def test_a_job_goes_to_one_worker_and_its_events_to_the_driver():
    async def scenario(exchange):
        waiting = asyncio.create_task(exchange.take("a"))
        await asyncio.sleep(0)
        await exchange.put(KEY, b"job")
        assert await waiting == b"job"
        assert await exchange.tell("a", KEY, b"started") is False
        await exchange.tell("a", KEY, b"ended", last=True)
        assert await exchange.news(0) == [JobTold(KEY, b"started"), JobTold(KEY, b"ended")]
        assert await exchange.news(0.01) == []

    during(scenario)


def test_a_dead_workers_question_takes_no_job():
    async def scenario(exchange):
        dead = asyncio.create_task(exchange.take("a"))
        await asyncio.sleep(0)
        await exchange.lost("a", "died")
        again = asyncio.create_task(exchange.take("a"))
        await asyncio.sleep(0)
        await exchange.put(KEY, b"job")
        assert await again == b"job"
        assert await dead is None

    during(scenario)


def test_a_dead_workers_job_is_lost_and_what_it_says_later_is_passed_on():
    async def scenario(exchange):
        await exchange.put(KEY, b"job")
        await exchange.take("a")
        await exchange.lost("a", "died")
        assert await exchange.news(0) == [WorkerDied("a", "died"), JobLost(KEY, "died")]
        assert await exchange.tell("a", KEY, b"late", last=True) is True
        assert await exchange.news(0) == [JobTold(KEY, b"late")]

    during(scenario)


def test_a_cancelled_job_hears_of_it():
    async def scenario(exchange):
        await exchange.put(KEY, b"job")
        await exchange.take("a")
        await exchange.cancel(KEY)
        assert await exchange.tell("a", KEY, b"step") is True

    during(scenario)


def test_a_score_waits_for_the_drivers_decision():
    async def scenario(exchange):
        await exchange.put(KEY, b"job")
        await exchange.take("a")
        told = asyncio.create_task(exchange.tell("a", KEY, b"score", decides=True))
        assert await exchange.news(5) == [JobTold(KEY, b"score")]
        await exchange.cancel(KEY)
        assert not told.done()
        await exchange.news(0.01)
        assert await told is True

    during(scenario)


def test_a_worker_without_progress_is_silent_once():
    async def scenario(exchange):
        await exchange.put(KEY, b"job")
        await exchange.take("a")
        await asyncio.sleep(0.05)
        assert await exchange.news(0.01) == [WorkerSilent("a")]
        assert await exchange.news(0.01) == []

    during(scenario, patience=0.02)


def test_who_waits_for_what_another_makes_is_not_silent():
    async def scenario(exchange):
        for slot, key in (("a", (0, 1)), ("b", (1, 1))):
            await exchange.put(key, b"job")
            await exchange.take(slot)
        assert await exchange.claim("a", "start") is None
        waiting = asyncio.create_task(exchange.claim("b", "start"))
        await asyncio.sleep(0.05)
        assert await exchange.news(0.01) == [WorkerSilent("a")]
        await exchange.share("a", "start", b"made")
        assert await waiting == b"made"
        await asyncio.sleep(0.05)
        assert await exchange.news(0.01) == [WorkerSilent("b")]

    during(scenario, patience=0.02)


def test_what_is_shared_is_made_once_or_by_the_next_one():
    async def scenario(exchange):
        assert await exchange.claim("a", "start") is None
        others = [asyncio.create_task(exchange.claim(s, "start")) for s in ("b", "c")]
        await asyncio.sleep(0.01)
        assert not any(o.done() for o in others)
        await exchange.lost("a", "died")
        assert await others[0] is None, "the next one makes it"
        await exchange.share("a", "start", None)  # the dead one's last words change nothing
        await asyncio.sleep(0.01)
        assert not others[1].done()
        await exchange.share("b", "start", b"made")
        assert await others[1] == b"made" == await exchange.claim("d", "start")

    during(scenario)


def test_rankings_are_asked_for_and_answered():
    async def scenario(exchange):
        asked = asyncio.create_task(exchange.ask("key"))
        (news,) = await exchange.news(5)
        assert news == RankingAsked(news.number, "key")
        await exchange.answer(news.number, b"ranking")
        assert await asked == b"ranking"

    during(scenario)


def test_closing_lets_workers_go():
    async def scenario(exchange):
        await exchange.put(KEY, b"job")
        await exchange.take("a")
        idle = asyncio.create_task(exchange.take("b"))
        await asyncio.sleep(0)
        await exchange.close()
        assert await idle is None
        assert await exchange.tell("a", KEY, b"step", decides=True) is True

    during(scenario)
