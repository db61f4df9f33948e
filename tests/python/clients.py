"""Both clients behind one function, so that a test speaks of either."""

import asyncio
import dataclasses

import camlens

FAST = camlens.Backoff(first_s=0.01, most_s=0.05, give_up_after_s=20)


@dataclasses.dataclass
class Outcome:
    """What a stream gave, and how it ended."""

    answers: list
    counts: camlens.Counts
    error: BaseException | None = None

    def by_kind(self):
        """The sequences of each kind of answer."""
        kinds = {}
        for one in self.answers:
            kinds.setdefault(type(one).__name__, []).append(one.sequence)
        return kinds

    def account(self, count):
        """Asserts that each of `count` frames has one answer, and that the counts say the same."""
        assert sorted(one.sequence for one in self.answers) == list(range(1, count + 1)), self.by_kind()
        assert self.counts.read == self.counts.ended == count


def run(kind, server, frames, *, on_answer=lambda stream, answer: None, backoff=FAST, settings=None, **arguments):
    """Streams `frames` with the client of a kind, "sync" or "aio"; calls `on_answer` with each answer."""
    settings = settings or {}
    answers = []
    if kind == "sync":
        with camlens.Client(server, backoff=backoff, **settings) as client:
            with client.stream(frames, **arguments) as stream:
                try:
                    for one in stream:
                        answers.append(one)
                        on_answer(stream, one)
                except Exception as error:
                    return Outcome(answers, stream.counts, error)
                return Outcome(answers, stream.counts)

    async def with_asyncio():
        async with camlens.aio.Client(server, backoff=backoff, **settings) as client:
            async with client.stream(frames, **arguments) as stream:
                try:
                    async for one in stream:
                        answers.append(one)
                        if asyncio.iscoroutine(done := on_answer(stream, one)):
                            await done
                except Exception as error:
                    return Outcome(answers, stream.counts, error)
                return Outcome(answers, stream.counts)

    return asyncio.run(with_asyncio())


def explain(kind, server, image, *, backoff=FAST, settings=None, **arguments):
    """Explains one picture with the client of a kind."""
    settings = settings or {}
    if kind == "sync":
        with camlens.Client(server, backoff=backoff, **settings) as client:
            return client.explain(image, **arguments)

    async def with_asyncio():
        async with camlens.aio.Client(server, backoff=backoff, **settings) as client:
            return await client.explain(image, **arguments)

    return asyncio.run(with_asyncio())
