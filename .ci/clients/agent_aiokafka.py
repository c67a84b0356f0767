"""aiokafka behind the agents' conversation."""

import asyncio

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor

from agent import REPLICAS, StaticMember, Wanted, b64, emit, main, pause_after, serve, static_members, stop_requested, unb64

ASSIGNORS = {"range": RangePartitionAssignor, "roundrobin": RoundRobinPartitionAssignor}


def serve_mode(bootstrap):
    loop = asyncio.new_event_loop()

    def blocking(operation):
        return lambda **fields: loop.run_until_complete(operation(**fields))

    async def with_consumer(action, group=None):
        c = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False,
                             auto_offset_reset="earliest")
        await c.start()
        try:
            return await action(c)
        finally:
            await c.stop()

    async def produce(topic, codec, records, idempotent, pace):
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap, linger_ms=5, enable_idempotence=bool(idempotent),
                                    acks="all", compression_type=None if codec == "none" else codec)
        await producer.start()
        try:
            futures = []
            for index, r in enumerate(records):
                futures.append(await producer.send(topic, value=unb64(r["v"]), key=unb64(r["k"]), partition=r.get("p"),
                                                   timestamp_ms=r.get("ts"),
                                                   headers=[(name, unb64(v)) for name, v in r.get("h", [])]))
                await asyncio.sleep(pause_after(index, pace))
            acks = [await asyncio.wait_for(f, 60) for f in futures]
        finally:
            await producer.stop()
        return {"acks": [[a.partition, a.offset] for a in acks]}

    async def read(want, start, timeout_s):
        wanted = Wanted(want)

        async def run(c):
            parts = [TopicPartition(t, p) for t, p in wanted.left]
            c.assign(parts)
            if start is None:
                await c.seek_to_beginning(*parts)
            else:
                for part in parts:
                    c.seek(part, start)
            deadline = loop.time() + timeout_s
            while not wanted.done() and loop.time() < deadline:
                for batch in (await c.getmany(timeout_ms=200)).values():
                    for m in batch:
                        wanted.take(m.topic, m.partition, m.offset, m.timestamp, m.key, m.value, m.headers)

        await with_consumer(run)
        return {"records": wanted.records}

    async def times(topic, queries):
        async def run(c):
            found = [(await c.offsets_for_times({TopicPartition(topic, p): ts}))[TopicPartition(topic, p)]
                     for p, ts in queries]
            return {"offsets": [-1 if f is None or f.offset is None else f.offset for f in found]}
        return await with_consumer(run)

    async def commit(group, topic, offsets):
        async def run(c):
            c.assign([TopicPartition(topic, int(p)) for p in offsets])
            await c.commit({TopicPartition(topic, int(p)): o for p, o in offsets.items()})
        await with_consumer(run, group)

    async def committed(group, topic, partitions):
        async def run(c):
            found = {str(p): await c.committed(TopicPartition(topic, p)) for p in partitions}
            return {"offsets": {p: o for p, o in found.items() if o is not None}}
        return await with_consumer(run, group)

    async def with_admin(action):
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
        await admin.start()
        try:
            return await action(admin)
        finally:
            await admin.close()

    def refuse(response):
        for entry in response.topics if hasattr(response, "topics") else response.topic_errors:
            if entry[1]:
                raise RuntimeError(f"topic {entry[0]}: error {entry[1]}")

    async def create(topic, partitions):
        refuse(await with_admin(lambda a: a.create_topics([NewTopic(topic, partitions, REPLICAS)])))

    async def delete(topic):
        response = await with_admin(lambda a: a.delete_topics([topic]))
        for name, code in response.topic_error_codes:
            if code:
                raise RuntimeError(f"topic {name}: error {code}")

    async def topics():
        return {"topics": sorted(await with_admin(lambda a: a.list_topics()))}

    async def config(topic, name):
        [told] = await with_admin(lambda a: a.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)]))
        [(_, _, _, _, entries)] = told.resources
        return {"value": next(entry[1] for entry in entries if entry[0] == name)}

    async def configure(topic, name, value):
        [told] = await with_admin(lambda a: a.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {name: value})]))
        for code, message, *_ in told.resources:
            if code:
                raise RuntimeError(f"topic {topic}: error {code}: {message}")

    async def grow(topic, partitions):
        await with_admin(lambda a: a.create_partitions({topic: NewPartitions(partitions)}))

    async def delete_records(topic, partition, offset):
        at = TopicPartition(topic, partition)
        return {"low": (await with_admin(lambda a: a.delete_records({at: RecordsToDelete(offset)})))[at]}

    async def groups():
        return {"groups": [name for name, _ in await with_admin(lambda a: a.list_consumer_groups())]}

    async def describe_group(group):
        [told] = await with_admin(lambda a: a.describe_consumer_groups([group]))
        return {"state": told.groups[0][2]}

    def static(group, topic, partitions):
        return static_members(lambda instance: Static(bootstrap, group, topic, instance), partitions)

    serve(dict(static=static) | {name: blocking(op) for name, op in dict(
        produce=produce, read=read, times=times, commit=commit, committed=committed,
        create=create, delete=delete, topics=topics, config=config, configure=configure, grow=grow,
        delete_records=delete_records, groups=groups, describe_group=describe_group).items()})


class Static(StaticMember, ConsumerRebalanceListener):
    def __init__(self, bootstrap, group, topic, instance):
        self.wanted = (bootstrap, group, topic, instance)
        super().__init__()

    def open(self):
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.consumer = self.loop.run_until_complete(self.started(*self.wanted))

    async def started(self, bootstrap, group, topic, instance):
        c = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=group, group_instance_id=instance,
                             session_timeout_ms=20_000, heartbeat_interval_ms=500)
        c.subscribe([topic], listener=self)
        await c.start()
        return c

    async def on_partitions_assigned(self, assigned):
        self.assigned(p.partition for p in assigned)

    async def on_partitions_revoked(self, revoked):
        pass

    def poll(self):
        self.loop.run_until_complete(self.consumer.getmany(timeout_ms=100))

    def end(self):
        self.loop.run_until_complete(self.consumer.stop())
        self.loop.close()


def member_mode(bootstrap, group, topic, strategy):
    stop = stop_requested()

    class Report(ConsumerRebalanceListener):
        async def on_partitions_revoked(self, revoked):
            emit({"e": "assigned", "parts": []})

        async def on_partitions_assigned(self, assigned):
            emit({"e": "assigned", "parts": sorted(p.partition for p in assigned)})

    async def run():
        c = AIOKafkaConsumer(
            bootstrap_servers=bootstrap, group_id=group, auto_offset_reset="earliest", auto_commit_interval_ms=500,
            session_timeout_ms=6000, heartbeat_interval_ms=500, metadata_max_age_ms=2000,
            partition_assignment_strategy=[ASSIGNORS[strategy]],
        )
        c.subscribe([topic], listener=Report())
        await c.start()
        while not stop.is_set():
            for batch in (await c.getmany(timeout_ms=100)).values():
                for m in batch:
                    emit({"e": "rec", "p": m.partition, "o": m.offset, "k": b64(m.key), "v": b64(m.value)})
        await c.stop()
        emit({"e": "closed"})

    asyncio.run(run())


main(serve_mode, member_mode)
