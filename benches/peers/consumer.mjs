// Batches of 1,000 as arrays in one statement, four of them in flight, one ack for all that is
// committed in order.
import { readFileSync } from 'node:fs';

import amqp from 'amqplib';
import pg from 'pg';

const BATCH = 1000;
const IN_FLIGHT = 4;
const COUNT = readFileSync(new URL('count.sql', import.meta.url), 'utf8');

const env = process.env;
const pool = new pg.Pool({
  host: env.POSTGRES_HOST,
  port: Number(env.POSTGRES_PORT),
  user: env.POSTGRES_USER,
  password: env.POSTGRES_PASSWORD,
  database: env.POSTGRES_DB,
  max: IN_FLIGHT,
});
const connection = await amqp.connect({
  hostname: env.RABBITMQ_HOST,
  port: Number(env.RABBITMQ_PORT),
  username: env.RABBITMQ_USER,
  password: env.RABBITMQ_PASSWORD,
});
const channel = await connection.createChannel();
await channel.prefetch(BATCH * IN_FLIGHT);

const fresh = () => [[], [], [], [], []];
let columns = fresh();
let last = null;
let timer = null;
let committed = Promise.resolve();

const flush = () => {
  clearTimeout(timer);
  timer = null;
  const message = last;
  const counting = pool.query({ name: 'count', text: COUNT, values: columns });
  columns = fresh();
  committed = Promise.all([committed, counting]).then(() => channel.ack(message, true));
};

await channel.consume(env.RABBITMQ_QUEUE, (message) => {
  const vote = JSON.parse(message.content);
  const row = [vote.vote_hash, vote.citizen_id, vote.law_id, vote.choice, vote.timestamp];
  row.forEach((value, column) => columns[column].push(value));
  last = message;
  if (columns[0].length === BATCH) flush();
  else timer ??= setTimeout(flush, 1000);
});
