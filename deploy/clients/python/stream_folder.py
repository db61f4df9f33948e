"""Streams a folder of pictures to camlens and writes an overlay of each: stream_folder.py FOLDER OUT [--asyncio]."""

import asyncio
import os
import pathlib
import sys

import camlens


def take(answer, out):
    """Writes the overlay of a frame, or says why there is none."""
    if answer.ok:
        answer.save_overlay(out / f"{answer.source.name}.png")
    else:
        print(answer, file=sys.stderr)


def report(counts):
    dropped = sum(counts.dropped.values())
    print(f"connections={counts.connections} explained={counts.answered} dropped={dropped} failed={counts.failed} "
          f"lost={counts.lost}")


def run(files, out, policy):
    with camlens.Client() as client, client.stream(files, policy=policy, pictures=["overlay"]) as answers:
        for answer in answers:
            take(answer, out)
        report(answers.counts)


async def run_with_asyncio(files, out, policy):
    async with camlens.aio.Client() as client, client.stream(files, policy=policy, pictures=["overlay"]) as answers:
        async for answer in answers:
            take(answer, out)
        report(answers.counts)


if __name__ == "__main__":
    folder, out = (pathlib.Path(name) for name in sys.argv[1:3])
    files, policy = sorted(folder.iterdir()), os.environ.get("CAMLENS_OVERFLOW", "block").lower()
    if "--asyncio" in sys.argv:
        asyncio.run(run_with_asyncio(files, out, policy))
    else:
        run(files, out, policy)
