"""What the Python consumers share: where the servers are, what a message says, and the SQL."""

import json
import os
from datetime import datetime
from pathlib import Path


def rabbitmq():
    user, password = os.environ["RABBITMQ_USER"], os.environ["RABBITMQ_PASSWORD"]
    host, port = os.environ["RABBITMQ_HOST"], os.environ["RABBITMQ_PORT"]
    return f"amqp://{user}:{password}@{host}:{port}/%2F"


def postgres():
    return {
        "host": os.environ["POSTGRES_HOST"],
        "port": int(os.environ["POSTGRES_PORT"]),
        "user": os.environ["POSTGRES_USER"],
        "password": os.environ["POSTGRES_PASSWORD"],
        "database": os.environ["POSTGRES_DB"],
    }


def queue():
    return os.environ["RABBITMQ_QUEUE"]


def decode(body):
    """(vote_hash, citizen_id, law_id, choice, timestamp)"""
    vote = json.loads(body)
    cast_at = datetime.fromisoformat(vote["timestamp"].replace("Z", "+00:00"))
    return vote["vote_hash"], vote["citizen_id"], vote["law_id"], vote["choice"], cast_at


def by_law(votes):
    """law_id -> [oui, non]"""
    laws = {}
    for _, _, law_id, choice, _ in votes:
        laws.setdefault(law_id, [0, 0])[choice == "non"] += 1
    return laws


ADD = """
INSERT INTO vote_results (law_id, oui_count, non_count) VALUES (%s, %s, %s)
ON CONFLICT (law_id) DO UPDATE
SET oui_count = vote_results.oui_count + excluded.oui_count,
    non_count = vote_results.non_count + excluded.non_count,
    updated_at = now()
"""

# One statement for audit and totals, so that only what was new is added.
COUNT = (Path(__file__).parent / "count.sql").read_text()
