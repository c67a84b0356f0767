"""confluent-kafka (librdkafka) behind the agents' conversation."""

import time

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewPartitions, NewTopic

from agent import REPLICAS, StaticMember, Wanted, b64, emit, main, pause_after, serve, static_members, stop_requested, unb64


def serve_mode(bootstrap):
    def consumer(group="unused", **extra):
        return Consumer({"bootstrap.servers": bootstrap, "group.id": group, "enable.auto.commit": False,
                         "auto.offset.reset": "earliest", **extra})

    def produce(topic, codec, records, idempotent, pace):
        results, errors = [None] * len(records), []
        settings = {"bootstrap.servers": bootstrap, "compression.type": codec, "linger.ms": 5}
        if idempotent:
            settings["enable.idempotence"] = True
        producer = Producer(settings)

        def delivered(index):
            def report(error, message):
                if error:
                    errors.append(str(error))
                else:
                    results[index] = [message.partition(), message.offset()]
            return report

        for index, r in enumerate(records):
            extra = {}
            if r.get("p") is not None:
                extra["partition"] = r["p"]
            if r.get("ts") is not None:
                extra["timestamp"] = r["ts"]
            headers = [(name, unb64(v)) for name, v in r.get("h", [])]
            producer.produce(topic, unb64(r["v"]), unb64(r["k"]), headers=headers, on_delivery=delivered(index), **extra)
            producer.poll(pause_after(index, pace))
        producer.flush(60)
        return {"error": errors[0]} if errors else {"acks": results}

    def read(want, start, timeout_s):
        wanted = Wanted(want)
        c = consumer(**{"enable.partition.eof": False})
        c.assign([TopicPartition(t, p, start or 0) for t, p in wanted.left])
        deadline = time.monotonic() + timeout_s
        while not wanted.done() and time.monotonic() < deadline:
            for m in c.consume(500, 0.2):
                if m.error():
                    raise KafkaException(m.error())
                wanted.take(m.topic(), m.partition(), m.offset(), m.timestamp()[1], m.key(), m.value(), m.headers())
        c.close()
        return {"records": wanted.records}

    def times(topic, queries):
        c = consumer()
        found = [c.offsets_for_times([TopicPartition(topic, p, ts)], 15)[0].offset for p, ts in queries]
        c.close()
        return {"offsets": [o if o >= 0 else -1 for o in found]}  # librdkafka says "the end" as -1 too

    def commit(group, topic, offsets):
        c = consumer(group)
        c.commit(offsets=[TopicPartition(topic, int(p), o) for p, o in offsets.items()], asynchronous=False)
        c.close()

    def committed(group, topic, partitions):
        c = consumer(group)
        found = c.committed([TopicPartition(topic, p) for p in partitions], 15)
        c.close()
        return {"offsets": {str(tp.partition): tp.offset for tp in found if tp.offset >= 0}}

    admin = AdminClient({"bootstrap.servers": bootstrap})

    def create(topic, partitions):
        for future in admin.create_topics([NewTopic(topic, partitions, REPLICAS)]).values():
            future.result(15)

    def delete(topic):
        for future in admin.delete_topics([topic]).values():
            future.result(15)

    def topics():
        return {"topics": sorted(admin.list_topics(timeout=15).topics)}

    def one(futures):
        [future] = futures.values()
        return future.result(15)

    def config(topic, name):
        return {"value": one(admin.describe_configs([ConfigResource(ConfigResource.Type.TOPIC, topic)]))[name].value}

    def configure(topic, name, value):
        change = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
        one(admin.incremental_alter_configs([ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[change])]))

    def grow(topic, partitions):
        one(admin.create_partitions([NewPartitions(topic, partitions)]))

    def delete_records(topic, partition, offset):
        # Looks leaders up in what it knows, and asks nobody about a partition that came later: hence a client of its own.
        fresh = AdminClient({"bootstrap.servers": bootstrap})
        return {"low": one(fresh.delete_records([TopicPartition(topic, partition, offset)])).low_watermark}

    def groups():
        return {"groups": [g.group_id for g in admin.list_consumer_groups().result(15).valid]}

    def describe_group(group):
        return {"state": one(admin.describe_consumer_groups([group])).state.name}

    def delete_group(group):
        one(admin.delete_consumer_groups([group]))

    def static(group, topic, partitions):
        return static_members(lambda instance: Static(bootstrap, group, topic, instance), partitions)

    serve(dict(produce=produce, read=read, times=times, commit=commit, committed=committed,
               create=create, delete=delete, topics=topics, config=config, configure=configure, grow=grow,
               delete_records=delete_records, groups=groups, describe_group=describe_group, delete_group=delete_group, static=static))


class Static(StaticMember):
    def __init__(self, bootstrap, group, topic, instance):
        self.consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "group.instance.id": instance,
                                  "session.timeout.ms": 20_000, "heartbeat.interval.ms": 500})
        self.topic = topic
        super().__init__()

    def open(self):
        self.consumer.subscribe([self.topic], on_assign=lambda _, parts: self.assigned(p.partition for p in parts))

    def poll(self):
        self.consumer.poll(0.1)

    def end(self):
        self.consumer.close()


def member_mode(bootstrap, group, topic, strategy):
    stop = stop_requested()
    c = Consumer({
        "bootstrap.servers": bootstrap, "group.id": group, "auto.offset.reset": "earliest",
        "session.timeout.ms": 6000, "heartbeat.interval.ms": 500, "auto.commit.interval.ms": 500,
        "partition.assignment.strategy": {"cooperative": "cooperative-sticky"}.get(strategy, strategy),
        "topic.metadata.refresh.interval.ms": 2000, "reconnect.backoff.max.ms": 1000,
    })

    held = set()

    def assigned(_, parts):
        held.update(p.partition for p in parts)
        emit({"e": "assigned", "parts": sorted(held)})

    def dropped(_, parts):
        held.difference_update(p.partition for p in parts)
        emit({"e": "assigned", "parts": sorted(held)})

    c.subscribe([topic], on_assign=assigned, on_revoke=dropped, on_lost=dropped)
    while not stop.is_set():
        m = c.poll(0.1)
        if m is not None and not m.error():
            emit({"e": "rec", "p": m.partition(), "o": m.offset(), "k": b64(m.key()), "v": b64(m.value())})
    c.close()
    emit({"e": "closed"})


main(serve_mode, member_mode)
