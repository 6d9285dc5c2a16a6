"""Batches of 1,000 as arrays in one statement, four of them in flight, one ack for all that is
committed in order: what asyncio, uvloop and asyncpg can do."""

import asyncio

import aio_pika
import asyncpg
import uvloop

import votes

BATCH, IN_FLIGHT = 1000, 4


async def main():
    pool = await asyncpg.create_pool(**votes.postgres(), min_size=IN_FLIGHT, max_size=IN_FLIGHT)
    connection = await aio_pika.connect(votes.rabbitmq())
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=BATCH * IN_FLIGHT)
    queue = await channel.declare_queue(votes.queue(), passive=True)
    incoming, committing = asyncio.Queue(), asyncio.Queue(IN_FLIGHT)
    await queue.consume(incoming.put)

    async def count(messages):
        columns = zip(*(votes.decode(message.body) for message in messages))
        await pool.execute(votes.COUNT, *(list(column) for column in columns))

    async def gather():
        while True:
            messages = [await incoming.get()]
            while len(messages) < BATCH:
                try:
                    messages.append(await asyncio.wait_for(incoming.get(), 1))
                except asyncio.TimeoutError:
                    break
            await committing.put((asyncio.create_task(count(messages)), messages[-1]))

    async def ack():
        while True:
            counting, last = await committing.get()
            await counting
            await last.ack(multiple=True)

    await asyncio.gather(gather(), ack())


uvloop.run(main())
