"""Acks each message as it comes and adds to the totals in batches of 100, without an audit: fast to
write, and whatever is in memory is lost with the process."""

import asyncio

import aio_pika
import psycopg2
from psycopg2.extras import execute_batch

import votes


async def main():
    database = psycopg2.connect(**votes.postgres())
    connection = await aio_pika.connect_robust(votes.rabbitmq())
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=100)
    queue = await channel.declare_queue(votes.queue(), passive=True)
    batch = []

    def flush():
        totals = [(law, *counts) for law, counts in votes.by_law(batch).items()]
        with database, database.cursor() as cursor:
            execute_batch(cursor, votes.ADD, totals, page_size=100)
        batch.clear()

    async with queue.iterator() as messages:
        async for message in messages:
            async with message.process():
                batch.append(votes.decode(message.body))
            if len(batch) == 100:
                flush()


asyncio.run(main())
