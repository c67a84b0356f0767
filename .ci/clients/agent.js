// kafkajs behind the agents' conversation (agent.py tells it).
// Its lz4 and zstd come from packages that need no compiler; the codecs are registered at the foot of this file.
'use strict';

const { createRequire } = require('node:module');
const readline = require('node:readline');

const modules = createRequire(process.env.NODE_MODULES_ROOT + '/');
const kafkajs = modules('kafkajs');
const { Kafka, CompressionTypes, CompressionCodecs, ConfigResourceTypes, PartitionAssigners, logLevel } = kafkajs;

const CODECS = { none: CompressionTypes.None, gzip: CompressionTypes.GZIP, snappy: CompressionTypes.Snappy, lz4: CompressionTypes.LZ4, zstd: CompressionTypes.ZSTD };
const b64 = bytes => (bytes === null || bytes === undefined ? null : Buffer.from(bytes).toString('base64'));
const unb64 = text => (text === null || text === undefined ? null : Buffer.from(text, 'base64'));
const emit = event => process.stdout.write(JSON.stringify(event) + '\n');

const connect = bootstrap => new Kafka({
  clientId: 'ci', brokers: bootstrap.split(','), logLevel: logLevel.ERROR, retry: { initialRetryTime: 100, maxRetryTime: 1000, retries: 60 },
  logCreator: () => entry => console.error(JSON.stringify(entry)),
});

// kafkajs gives repeated header names as an array, in order.
const headerList = headers => Object.entries(headers || {}).flatMap(([name, v]) => (Array.isArray(v) ? v : [v]).map(one => [name, b64(one)]));

function headerMap(list) {
  const map = {};
  for (const [name, value] of list || []) (map[name] = map[name] || []).push(unb64(value));
  return map;
}

function serveMode(bootstrap) {
  const kafka = connect(bootstrap);
  let reads = 0;

  async function withAdmin(action) {
    const admin = kafka.admin();
    await admin.connect();
    try { return await action(admin); } finally { await admin.disconnect(); }
  }

  async function produce({ topic, codec, records, idempotent, pace }) {
    const producer = kafka.producer(idempotent ? { idempotent: true, maxInFlightRequests: 1 } : {});
    await producer.connect();
    try {
      const messages = records.map(r => ({ key: unb64(r.k), value: unb64(r.v), partition: r.p ?? undefined, timestamp: r.ts == null ? undefined : String(r.ts), headers: headerMap(r.h) }));
      const acks = [];
      // kafkajs forgets a partition whose leader moves, between two tries, to a broker that has answered already
      // (sendMessages.js, 2.2: brokersWithoutResponse). What is not in the answer was not acknowledged.
      const sent = async rest => {
        const next = new Map();
        while (rest.length) {
          const answer = await producer.send({ topic, compression: CODECS[codec], messages: rest });
          for (const a of answer) next.set(a.partition, Number(a.baseOffset));
          rest = rest.filter(m => m.partition !== undefined && !next.has(m.partition));
        }
        return next;
      };
      const chunk = pace ? 50 : messages.length;
      for (let at = 0; at < messages.length; at += chunk) {
        // The answer names a base offset per partition, from which each record's follows.
        const next = await sent(messages.slice(at, at + chunk));
        for (const r of records.slice(at, at + chunk)) {
          const offset = next.get(r.p);
          next.set(r.p, offset + 1);
          acks.push(r.p == null ? null : [r.p, offset]);
        }
        if (pace) await new Promise(wake => setTimeout(wake, 50000 / pace));
      }
      return { acks };
    } finally { await producer.disconnect(); }
  }

  // kafkajs has no assign(): a group of its own reads from the beginning.
  async function read({ want, start, timeout_s: timeout }) {
    const left = new Map();
    for (const [topic, parts] of Object.entries(want)) for (const [p, n] of Object.entries(parts)) if (n) left.set(`${topic}/${p}`, n);
    const records = [];
    const consumer = kafka.consumer({ groupId: `kafkajs-read-${process.pid}-${reads++}`, maxWaitTimeInMs: 200 });
    await consumer.connect();
    await consumer.subscribe({ topics: Object.keys(want), fromBeginning: true });
    await new Promise((resolve, reject) => {
      const timer = setTimeout(resolve, timeout * 1000);
      const finish = () => { clearTimeout(timer); resolve(); };
      if (left.size === 0) finish();
      consumer.on(consumer.events.CRASH, e => reject(e.payload.error));
      consumer.run({
        eachMessage: async ({ topic, partition, message: m }) => {
          records.push({ t: topic, p: partition, o: Number(m.offset), ts: Number(m.timestamp), k: b64(m.key), v: b64(m.value), h: headerList(m.headers) });
          const slot = `${topic}/${partition}`;
          if (left.has(slot)) { left.set(slot, left.get(slot) - 1); if (left.get(slot) === 0) left.delete(slot); }
          if (left.size === 0) finish();
        },
      }).catch(reject);
      if (start !== null) for (const [topic, parts] of Object.entries(want)) for (const p of Object.keys(parts)) consumer.seek({ topic, partition: Number(p), offset: String(start) });
    });
    await consumer.disconnect();
    return { records };
  }

  // kafkajs gives every partition's offset for one time; where there is none it puts the log's end.
  const times = ({ topic, queries }) => withAdmin(async admin => {
    const ends = new Map((await admin.fetchTopicOffsets(topic)).map(o => [o.partition, Number(o.high)]));
    const offsets = [];
    for (const [partition, ts] of queries) {
      const found = await admin.fetchTopicOffsetsByTimestamp(topic, ts);
      const offset = Number(found.find(o => o.partition === partition).offset);
      offsets.push(offset >= ends.get(partition) ? -1 : offset);
    }
    return { offsets };
  });

  const commit = ({ group, topic, offsets }) => withAdmin(admin => admin.setOffsets({
    groupId: group, topic, partitions: Object.entries(offsets).map(([p, o]) => ({ partition: Number(p), offset: String(o) })),
  })).then(() => ({}));

  const committed = ({ group, topic, partitions }) => withAdmin(async admin => {
    const [found] = await admin.fetchOffsets({ groupId: group, topics: [topic] });
    return { offsets: Object.fromEntries(found.partitions.filter(o => partitions.includes(o.partition) && Number(o.offset) >= 0).map(o => [o.partition, Number(o.offset)])) };
  });

  // Waiting for leaders, kafkajs gives up where metadata has no such topic yet, as Kafka's may for a moment (admin/index.js, 2.2).
  const create = ({ topic, partitions }) => withAdmin(async admin => {
    if (!await admin.createTopics({ waitForLeaders: false, topics: [{ topic, numPartitions: partitions, replicationFactor: Number(process.env.REPLICAS || 1) }] })) throw new Error('topic already exists');
    return {};
  });
  const remove = ({ topic }) => withAdmin(admin => admin.deleteTopics({ topics: [topic] })).then(() => ({}));
  // kafkajs lists nothing, and says so with a TypeError, while any topic of anybody's has no leader yet (cluster/index.js, 2.2:
  // metadata, where withBroker forgets the error).
  const topics = () => withAdmin(async admin => {
    for (let tries = 1; ; tries++) {
      try { return { topics: (await admin.listTopics()).sort() }; } catch (error) { if (!(error instanceof TypeError) || tries === 50) throw error; }
      await new Promise(wake => setTimeout(wake, 100));
    }
  });

  const config = ({ topic, name }) => withAdmin(async admin => {
    const { resources: [{ configEntries }] } = await admin.describeConfigs({ resources: [{ type: ConfigResourceTypes.TOPIC, name: topic }] });
    return { value: configEntries.find(entry => entry.configName === name).configValue };
  });
  const configure = ({ topic, name, value }) => withAdmin(admin => admin.alterConfigs({
    validateOnly: false, resources: [{ type: ConfigResourceTypes.TOPIC, name: topic, configEntries: [{ name, value }] }],
  })).then(() => ({}));
  const grow = ({ topic, partitions }) => withAdmin(admin => admin.createPartitions({ topicPartitions: [{ topic, count: partitions }] })).then(() => ({}));
  const deleteRecords = ({ topic, partition, offset }) => withAdmin(async admin => {
    await admin.fetchTopicOffsets(topic);  // it looks the leader up in the metadata that it has
    await admin.deleteTopicRecords({ topic, partitions: [{ partition, offset: String(offset) }] });
    return { low: Number((await admin.fetchTopicOffsets(topic)).find(o => o.partition === partition).low) };
  });
  const groups = () => withAdmin(async admin => ({ groups: (await admin.listGroups()).groups.map(g => g.groupId) }));
  const describeGroup = ({ group }) => withAdmin(async admin => ({ state: (await admin.describeGroups([group])).groups[0].state }));
  const deleteGroup = ({ group }) => withAdmin(admin => admin.deleteGroups([group])).then(() => ({}));

  const operations = {
    produce, read, times, commit, committed, create, delete: remove, topics, config, configure, grow,
    delete_records: deleteRecords, groups, describe_group: describeGroup, delete_group: deleteGroup,
  };
  const input = readline.createInterface({ input: process.stdin });
  let turn = Promise.resolve();
  input.on('line', line => {
    const { op, ...fields } = JSON.parse(line);
    turn = turn.then(() => operations[op](fields)).then(emit, error => { console.error(error); emit({ error: `${error.name}: ${error.message}` }); });
  });
  input.on('close', () => turn.then(() => process.exit(0)));
}

async function memberMode(bootstrap, group, topic) {
  const consumer = connect(bootstrap).consumer({
    groupId: group, sessionTimeout: 6000, heartbeatInterval: 500, maxWaitTimeInMs: 200, metadataMaxAge: 2000,
    partitionAssigners: [PartitionAssigners.roundRobin],
  });
  consumer.on(consumer.events.GROUP_JOIN, e => emit({ e: 'assigned', parts: (e.payload.memberAssignment[topic] || []).slice().sort((a, b) => a - b) }));
  consumer.on(consumer.events.REBALANCING, () => emit({ e: 'assigned', parts: [] }));
  await consumer.connect();
  await consumer.subscribe({ topics: [topic], fromBeginning: true });
  await consumer.run({
    autoCommitInterval: 500,
    eachMessage: async ({ partition, message: m }) => emit({ e: 'rec', p: partition, o: Number(m.offset), k: b64(m.key), v: b64(m.value) }),
  });
  process.stdin.once('data', async () => {
    await consumer.disconnect();
    emit({ e: 'closed' });
    process.exit(0);
  });
}

async function registerCodecs() {
  const lz4 = modules('lz4-napi');
  const zstd = modules('@bokuweb/zstd-wasm');
  await zstd.init();
  CompressionCodecs[CompressionTypes.Snappy] = modules('kafkajs-snappy');
  CompressionCodecs[CompressionTypes.LZ4] = () => ({
    compress: encoder => lz4.compressFrame(encoder.buffer),
    decompress: bytes => lz4.decompressFrame(bytes),
  });
  CompressionCodecs[CompressionTypes.ZSTD] = () => ({
    compress: async encoder => Buffer.from(zstd.compress(encoder.buffer)),
    decompress: async bytes => Buffer.from(zstd.decompress(bytes)),
  });
}

const [mode, ...rest] = process.argv.slice(2);
registerCodecs().then(() => (mode === 'serve' ? serveMode(...rest) : memberMode(...rest))).catch(error => { console.error(error); process.exit(1); });
