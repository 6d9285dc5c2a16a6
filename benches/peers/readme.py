"""Batches of 100 with an audit row a vote, by execute_batch, and one ack a batch after the commit."""

import pika
import psycopg2
from psycopg2.extras import execute_batch

import votes

RECORD = """
INSERT INTO vote_audit (vote_hash, citizen_id, law_id, choice, "timestamp")
VALUES (%s, %s, %s, %s, %s) ON CONFLICT (vote_hash) DO NOTHING
"""

database = psycopg2.connect(**votes.postgres())
connection = pika.BlockingConnection(pika.URLParameters(votes.rabbitmq()))
channel = connection.channel()
channel.basic_qos(prefetch_count=100)

batch = []
for method, _, body in channel.consume(votes.queue(), inactivity_timeout=1):
    if method is not None:
        batch.append(votes.decode(body))
        last = method.delivery_tag
    if len(batch) == 100 or (batch and method is None):
        totals = [(law, *counts) for law, counts in votes.by_law(batch).items()]
        with database, database.cursor() as cursor:
            execute_batch(cursor, RECORD, batch, page_size=100)
            execute_batch(cursor, votes.ADD, totals, page_size=100)
        channel.basic_ack(last, multiple=True)
        batch.clear()
