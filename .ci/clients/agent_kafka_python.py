"""kafka-python behind the agents' conversation."""

import time

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from kafka.structs import OffsetAndMetadata

from agent import REPLICAS, Wanted, b64, emit, main, pause_after, serve, stop_requested, unb64

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

    def read(want, timeout_s):
        wanted = Wanted(want)
        c = consumer()
        parts = [TopicPartition(t, p) for t, p in wanted.left]
        c.assign(parts)
        c.seek_to_beginning(*parts)
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

    serve(dict(produce=produce, read=read, times=times, commit=commit, committed=committed,
               create=create, delete=delete, topics=topics))


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
