"""kafka-python behind the agents' conversation."""

import time

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from kafka.structs import OffsetAndMetadata

from agent import REPLICAS, StaticMember, Wanted, b64, emit, main, pause_after, serve, static_members, stop_requested, unb64

ASSIGNORS = {"range": RangePartitionAssignor, "roundrobin": RoundRobinPartitionAssignor,
             "cooperative": CooperativeStickyAssignor}


def serve_mode(bootstrap):
    def consumer(group=None):
        return KafkaConsumer(bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False,
                             auto_offset_reset="earliest")

    def produce(topic, codec, records, idempotent, pace):
        settings = {"enable_idempotence": True} if idempotent else {}
        producer = KafkaProducer(bootstrap_servers=bootstrap, linger_ms=5,
                                 compression_type=None if codec == "none" else codec, **settings)
        futures = []
        for index, r in enumerate(records):
            futures.append(producer.send(topic, value=unb64(r["v"]), key=unb64(r["k"]), partition=r.get("p"),
                                         timestamp_ms=r.get("ts"), headers=[(name, unb64(v)) for name, v in r.get("h", [])]))
            time.sleep(pause_after(index, pace))
        producer.flush(60)
        acks = [f.get(60) for f in futures]
        producer.close()
        return {"acks": [[a.partition, a.offset] for a in acks]}

    def read(want, start, timeout_s):
        wanted = Wanted(want)
        c = consumer()
        parts = [TopicPartition(t, p) for t, p in wanted.left]
        c.assign(parts)
        if start is None:
            c.seek_to_beginning(*parts)
        else:
            for part in parts:
                c.seek(part, start)
        deadline = time.monotonic() + timeout_s
        while not wanted.done() and time.monotonic() < deadline:
            for batch in c.poll(timeout_ms=200).values():
                for m in batch:
                    wanted.take(m.topic, m.partition, m.offset, m.timestamp, m.key, m.value, m.headers)
        c.close()
        return {"records": wanted.records}

    def times(topic, queries):
        c = consumer()
        found = [c.offsets_for_times({TopicPartition(topic, p): ts})[TopicPartition(topic, p)] for p, ts in queries]
        c.close()
        return {"offsets": [-1 if f is None else f.offset for f in found]}

    def commit(group, topic, offsets):
        c = consumer(group)
        c.assign([TopicPartition(topic, int(p)) for p in offsets])
        c.commit({TopicPartition(topic, int(p)): OffsetAndMetadata(o, "", -1) for p, o in offsets.items()})
        c.close()

    def committed(group, topic, partitions):
        c = consumer(group)
        found = {str(p): c.committed(TopicPartition(topic, p)) for p in partitions}
        c.close()
        return {"offsets": {p: o for p, o in found.items() if o is not None}}

    def with_admin(action):
        admin = KafkaAdminClient(bootstrap_servers=bootstrap)
        try:
            return action(admin)
        finally:
            admin.close()

    def create(topic, partitions):
        with_admin(lambda a: a.create_topics([NewTopic(name=topic, num_partitions=partitions, replication_factor=REPLICAS)]))

    def delete(topic):
        with_admin(lambda a: a.delete_topics([topic]))

    def topics():
        return {"topics": sorted(with_admin(lambda a: a.list_topics()))}

    def config(topic, name):
        told = with_admin(lambda a: a.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)], config_filter="all"))
        return {"value": told["topic"][topic][name]["value"]}

    def configure(topic, name, value):
        told = with_admin(lambda a: a.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {name: value})]))
        if told["topic"][topic] != "OK":
            raise RuntimeError(f"topic {topic}: {told}")

    def grow(topic, partitions):
        with_admin(lambda a: a.create_partitions({topic: partitions}))

    def delete_records(topic, partition, offset):
        at = TopicPartition(topic, partition)
        return {"low": with_admin(lambda a: a.delete_records({at: offset}))[at]["low_watermark"]}

    def groups():
        return {"groups": [g["group_id"] for g in with_admin(lambda a: a.list_groups())]}

    def describe_group(group):
        return {"state": with_admin(lambda a: a.describe_groups([group]))[group]["group_state"]}

    def delete_group(group):
        with_admin(lambda a: a.delete_groups([group]))

    def static(group, topic, partitions):
        return static_members(lambda instance: Static(bootstrap, group, topic, instance), partitions)

    serve(dict(produce=produce, read=read, times=times, commit=commit, committed=committed,
               create=create, delete=delete, topics=topics, config=config, configure=configure, grow=grow,
               delete_records=delete_records, groups=groups, describe_group=describe_group, delete_group=delete_group, static=static))


class Static(StaticMember, ConsumerRebalanceListener):
    def __init__(self, bootstrap, group, topic, instance):
        self.consumer = KafkaConsumer(bootstrap_servers=bootstrap, group_id=group, group_instance_id=instance,
                                      session_timeout_ms=20_000, heartbeat_interval_ms=500)
        self.topic = topic
        super().__init__()

    def open(self):
        self.consumer.subscribe([self.topic], listener=self)

    def on_partitions_assigned(self, assigned):
        self.assigned(p.partition for p in assigned)

    def on_partitions_revoked(self, revoked):
        pass

    def poll(self):
        self.consumer.poll(timeout_ms=100)

    def end(self):
        self.consumer.close()


def member_mode(bootstrap, group, topic, strategy):
    stop = stop_requested()
    c = KafkaConsumer(
        bootstrap_servers=bootstrap, group_id=group, auto_offset_reset="earliest", auto_commit_interval_ms=500,
        session_timeout_ms=6000, heartbeat_interval_ms=500, reconnect_backoff_max_ms=1000,
        partition_assignment_strategy=[ASSIGNORS[strategy]],
    )

    class Report(ConsumerRebalanceListener):
        def __init__(self):
            self.held = set()

        def on_partitions_assigned(self, assigned):
            # Under the cooperative protocol this is what was added, so the set is kept here.
            self.held |= {p.partition for p in assigned}
            emit({"e": "assigned", "parts": sorted(self.held)})

        def on_partitions_revoked(self, revoked):
            self.held -= {p.partition for p in revoked}
            emit({"e": "assigned", "parts": sorted(self.held)})

        def on_partitions_lost(self, lost):
            self.on_partitions_revoked(lost)

    c.subscribe([topic], listener=Report())
    while not stop.is_set():
        for batch in c.poll(timeout_ms=100).values():
            for m in batch:
                emit({"e": "rec", "p": m.partition, "o": m.offset, "k": b64(m.key), "v": b64(m.value)})
    c.close()
    emit({"e": "closed"})


main(serve_mode, member_mode)
