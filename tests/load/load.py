"""So many clients that ask one request after the other, of any kind, for a time."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import ask
import httpx
from ask import Refused
from kinds import KINDS, Kind
from record import Outcome, Record


@dataclass
class Pool:
    """Bodies by kind, and the answer to each when nothing else runs."""

    bodies: dict[str, list[dict]]
    alone: dict[str, list[str | None]] = field(default_factory=dict)


def draw(seed: int, size: int) -> Pool:
    """size: bodies of each kind."""
    return Pool({kind.name: kind.bodies(Random(f"{seed} {kind.drawn}"), size) for kind in KINDS})


async def ask_alone(url: str, pool: Pool) -> None:
    """Fill in ``pool.alone``, one request at a time, and the same one once."""
    known: dict[str, list[str | None]] = {}
    async with ask.client(url) as http:
        for kind in KINDS:
            bodies = pool.bodies[kind.name]
            if not kind.compared:
                pool.alone[kind.name] = [None] * len(bodies)
                continue
            if kind.drawn not in known:
                known[kind.drawn] = [await ask.whole(http, body) for body in bodies]
            pool.alone[kind.name] = known[kind.drawn]


async def run(
    url: str, pool: Pool, clients: int, going: Callable[[], bool], every: float = 0.0
) -> list[Record]:
    """Ask while ``going()``, then let what runs end.

    every: seconds from one request of a client to its next, all clients' at once; 0 for no pause.
    """
    records: list[Record] = []
    began = time.monotonic()

    async def client(random: Random) -> None:
        while going():
            kind = random.choices(KINDS, [one.share for one in KINDS])[0]
            place = random.randrange(len(pool.bodies[kind.name]))
            records.append(await _one(http, kind, pool, place))
            if every:
                await asyncio.sleep(every - (time.monotonic() - began) % every)

    async with ask.client(url) as http:
        await asyncio.gather(*(client(Random(number)) for number in range(clients)))
    return records


async def _one(http: httpx.AsyncClient, kind: Kind, pool: Pool, place: int) -> Record:
    began = time.monotonic()
    try:
        outcome, detail = await kind.ask(
            http, pool.bodies[kind.name][place], pool.alone[kind.name][place]
        )
    except (httpx.HTTPError, Refused) as error:
        outcome, detail = Outcome.LOST, f"{type(error).__name__}: {error}"
    return Record(kind.name, outcome, time.monotonic() - began, detail)
