// Kafka's Java client behind the agents' conversation (agent.py tells it), with its default settings:
// what is set here is only what a test is about.

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.time.Duration;
import java.util.*;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

public final class Agent {
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final PrintStream ANSWERS = System.out;
    private static final short REPLICAS = Short.parseShort(System.getenv().getOrDefault("REPLICAS", "1"));
    private final String bootstrap;

    private Agent(String bootstrap) { this.bootstrap = bootstrap; }

    public static void main(String[] args) throws Exception {
        System.setOut(System.err); // the logging backend writes to System.out, which is for answers here
        Agent agent = new Agent(args[1]);
        if (args[0].equals("serve")) agent.serve(); else agent.member(args[2], args[3], args[4]);
    }

    private static String b64(byte[] bytes) { return bytes == null ? null : Base64.getEncoder().encodeToString(bytes); }
    private static byte[] unb64(JsonNode node) { return node == null || node.isNull() ? null : Base64.getDecoder().decode(node.asText()); }
    private static synchronized void emit(JsonNode event) { ANSWERS.println(event); ANSWERS.flush(); }

    private void serve() throws Exception {
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            JsonNode request = JSON.readTree(line);
            ObjectNode answer;
            try {
                answer = perform(request);
            } catch (Exception error) {
                error.printStackTrace();
                answer = JSON.createObjectNode().put("error", error.toString());
            }
            emit(answer);
        }
    }

    private ObjectNode perform(JsonNode r) throws Exception {
        switch (r.get("op").asText()) {
            case "produce": return produce(r);
            case "read": return read(r);
            case "times": return times(r);
            case "commit": return commit(r);
            case "committed": return committed(r);
            case "create": return admin(a -> a.createTopics(List.of(new NewTopic(r.get("topic").asText(), r.get("partitions").asInt(), REPLICAS))).all().get(30, TimeUnit.SECONDS));
            case "delete": return admin(a -> a.deleteTopics(List.of(r.get("topic").asText())).all().get(30, TimeUnit.SECONDS));
            case "topics": {
                ObjectNode answer = JSON.createObjectNode();
                ArrayNode names = answer.putArray("topics");
                admin(a -> { for (String name : new TreeSet<>(a.listTopics().names().get(30, TimeUnit.SECONDS))) names.add(name); });
                return answer;
            }
            case "config": {
                ConfigResource topic = topic(r);
                return told(answer -> admin(a -> answer.put("value", a.describeConfigs(List.of(topic)).all().get(30, TimeUnit.SECONDS).get(topic).get(r.get("name").asText()).value())));
            }
            case "configure": {
                AlterConfigOp change = new AlterConfigOp(new ConfigEntry(r.get("name").asText(), r.get("value").asText()), AlterConfigOp.OpType.SET);
                return admin(a -> a.incrementalAlterConfigs(Map.of(topic(r), List.of(change))).all().get(30, TimeUnit.SECONDS));
            }
            case "grow": return admin(a -> a.createPartitions(Map.of(r.get("topic").asText(), NewPartitions.increaseTo(r.get("partitions").asInt()))).all().get(30, TimeUnit.SECONDS));
            case "delete_records": {
                TopicPartition at = new TopicPartition(r.get("topic").asText(), r.get("partition").asInt());
                return told(answer -> admin(a -> answer.put("low", a.deleteRecords(Map.of(at, RecordsToDelete.beforeOffset(r.get("offset").asLong()))).lowWatermarks().get(at).get(30, TimeUnit.SECONDS).lowWatermark())));
            }
            case "groups": return told(answer -> {
                ArrayNode names = answer.putArray("groups");
                admin(a -> a.listGroups(ListGroupsOptions.forConsumerGroups()).all().get(30, TimeUnit.SECONDS).forEach(g -> names.add(g.groupId())));
            });
            case "describe_group": {
                String group = r.get("group").asText();
                return told(answer -> admin(a -> answer.put("state", a.describeConsumerGroups(List.of(group)).all().get(30, TimeUnit.SECONDS).get(group).groupState().toString())));
            }
            case "delete_group": return admin(a -> a.deleteConsumerGroups(List.of(r.get("group").asText())).all().get(30, TimeUnit.SECONDS));
            case "static": return staticMembers(r);
            default: throw new IllegalArgumentException("unknown op " + r.get("op"));
        }
    }

    private static ConfigResource topic(JsonNode r) { return new ConfigResource(ConfigResource.Type.TOPIC, r.get("topic").asText()); }

    private interface Telling { void tell(ObjectNode answer) throws Exception; }

    private static ObjectNode told(Telling telling) throws Exception {
        ObjectNode answer = JSON.createObjectNode();
        telling.tell(answer);
        return answer;
    }

    private interface AdminAction { void run(Admin admin) throws Exception; }

    private ObjectNode admin(AdminAction action) throws Exception {
        try (Admin admin = Admin.create(Map.of("bootstrap.servers", bootstrap))) { action.run(admin); }
        return JSON.createObjectNode();
    }

    /** A consumer with an instance id. */
    private final class Static implements ConsumerRebalanceListener {
        private final KafkaConsumer<byte[], byte[]> consumer;
        private Set<Integer> held = new TreeSet<>();
        private int assignments = 0;
        private Static(JsonNode r, String instance) {
            consumer = consumer(Map.of("group.id", r.get("group").asText(), "group.instance.id", instance, "session.timeout.ms", 20_000, "heartbeat.interval.ms", 500));
            consumer.subscribe(List.of(r.get("topic").asText()), this);
        }
        @Override public void onPartitionsAssigned(Collection<TopicPartition> parts) { held = new TreeSet<>(); parts.forEach(p -> held.add(p.partition())); assignments++; }
        @Override public void onPartitionsRevoked(Collection<TopicPartition> gone) { }
    }

    /** As static_members of agent.py does. */
    private ObjectNode staticMembers(JsonNode r) {
        ObjectNode answer = JSON.createObjectNode();
        Static leaving = new Static(r, "leaving"), staying = new Static(r, "staying");
        shared(r, leaving, staying);
        ArrayNode before = answer.putArray("before");
        before.addPOJO(leaving.held).addPOJO(staying.held);
        int assignments = staying.assignments;
        leaving.consumer.close();
        Static back = new Static(r, "leaving");
        shared(r, back, staying);
        for (int i = 0; i < 10; i++) { back.consumer.poll(Duration.ofMillis(100)); staying.consumer.poll(Duration.ofMillis(100)); }
        answer.putArray("after").addPOJO(back.held).addPOJO(staying.held);
        answer.put("disturbed", staying.assignments - assignments);
        back.consumer.close();
        staying.consumer.close();
        return answer;
    }

    private static void shared(JsonNode r, Static one, Static other) {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(40);
        while (one.held.isEmpty() || other.held.isEmpty() || one.held.size() + other.held.size() != r.get("partitions").asInt()) {
            if (System.nanoTime() > deadline) throw new IllegalStateException("static members held " + one.held + " and " + other.held + " after 40 s");
            one.consumer.poll(Duration.ofMillis(100));
            other.consumer.poll(Duration.ofMillis(100));
        }
    }

    private ObjectNode produce(JsonNode r) throws Exception {
        Map<String, Object> settings = new HashMap<>(Map.of("bootstrap.servers", bootstrap, "compression.type", r.get("codec").asText()));
        ObjectNode answer = JSON.createObjectNode();
        try (KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(settings, new ByteArraySerializer(), new ByteArraySerializer())) {
            List<Future<RecordMetadata>> sent = new ArrayList<>();
            for (JsonNode record : r.get("records")) {
                List<Header> headers = new ArrayList<>();
                if (record.has("h")) for (JsonNode h : record.get("h")) headers.add(new RecordHeader(h.get(0).asText(), unb64(h.get(1))));
                Integer partition = record.hasNonNull("p") ? record.get("p").asInt() : null;
                Long timestamp = record.hasNonNull("ts") ? record.get("ts").asLong() : null;
                sent.add(producer.send(new ProducerRecord<>(r.get("topic").asText(), partition, timestamp, unb64(record.get("k")), unb64(record.get("v")), headers)));
                if (r.get("pace").asInt() > 0 && sent.size() % 50 == 0) Thread.sleep(50_000 / r.get("pace").asInt());
            }
            ArrayNode acks = answer.putArray("acks");
            for (Future<RecordMetadata> future : sent) {
                RecordMetadata ack = future.get(60, TimeUnit.SECONDS);
                acks.addArray().add(ack.partition()).add(ack.offset());
            }
        }
        return answer;
    }

    private KafkaConsumer<byte[], byte[]> consumer(Map<String, Object> extra) {
        Map<String, Object> settings = new HashMap<>(extra);
        settings.put("bootstrap.servers", bootstrap);
        settings.put("auto.offset.reset", "earliest");
        return new KafkaConsumer<>(settings, new ByteArrayDeserializer(), new ByteArrayDeserializer());
    }

    private KafkaConsumer<byte[], byte[]> simple() { return consumer(Map.of("enable.auto.commit", false)); }

    private ObjectNode read(JsonNode r) {
        Map<TopicPartition, Integer> left = new HashMap<>();
        r.get("want").properties().forEach(topic -> topic.getValue().properties().forEach(p -> {
            if (p.getValue().asInt() > 0) left.put(new TopicPartition(topic.getKey(), Integer.parseInt(p.getKey())), p.getValue().asInt());
        }));
        ObjectNode answer = JSON.createObjectNode();
        ArrayNode records = answer.putArray("records");
        long deadline = System.nanoTime() + (long) (r.get("timeout_s").asDouble() * 1e9);
        try (KafkaConsumer<byte[], byte[]> consumer = simple()) {
            consumer.assign(left.keySet());
            if (r.hasNonNull("start")) consumer.assignment().forEach(at -> consumer.seek(at, r.get("start").asLong()));
            else consumer.seekToBeginning(consumer.assignment());
            while (!left.isEmpty() && System.nanoTime() < deadline) {
                for (ConsumerRecord<byte[], byte[]> m : consumer.poll(Duration.ofMillis(200))) {
                    ObjectNode out = records.addObject().put("t", m.topic()).put("p", m.partition()).put("o", m.offset()).put("ts", m.timestamp()).put("k", b64(m.key())).put("v", b64(m.value()));
                    ArrayNode headers = out.putArray("h");
                    for (Header h : m.headers()) headers.addArray().add(h.key()).add(b64(h.value()));
                    left.computeIfPresent(new TopicPartition(m.topic(), m.partition()), (tp, n) -> n == 1 ? null : n - 1);
                }
            }
        }
        return answer;
    }

    private ObjectNode times(JsonNode r) {
        ObjectNode answer = JSON.createObjectNode();
        ArrayNode offsets = answer.putArray("offsets");
        try (KafkaConsumer<byte[], byte[]> consumer = simple()) {
            for (JsonNode query : r.get("queries")) {
                TopicPartition tp = new TopicPartition(r.get("topic").asText(), query.get(0).asInt());
                OffsetAndTimestamp found = consumer.offsetsForTimes(Map.of(tp, query.get(1).asLong())).get(tp);
                offsets.add(found == null ? -1 : found.offset());
            }
        }
        return answer;
    }

    private KafkaConsumer<byte[], byte[]> grouped(JsonNode r) { return consumer(Map.of("group.id", r.get("group").asText(), "enable.auto.commit", false)); }

    private ObjectNode commit(JsonNode r) {
        Map<TopicPartition, OffsetAndMetadata> offsets = new HashMap<>();
        r.get("offsets").properties().forEach(o -> offsets.put(new TopicPartition(r.get("topic").asText(), Integer.parseInt(o.getKey())), new OffsetAndMetadata(o.getValue().asLong())));
        try (KafkaConsumer<byte[], byte[]> consumer = grouped(r)) { consumer.commitSync(offsets); }
        return JSON.createObjectNode();
    }

    private ObjectNode committed(JsonNode r) {
        Set<TopicPartition> wanted = new HashSet<>();
        for (JsonNode p : r.get("partitions")) wanted.add(new TopicPartition(r.get("topic").asText(), p.asInt()));
        ObjectNode answer = JSON.createObjectNode();
        ObjectNode offsets = answer.putObject("offsets");
        try (KafkaConsumer<byte[], byte[]> consumer = grouped(r)) {
            consumer.committed(wanted).forEach((tp, o) -> { if (o != null) offsets.put(String.valueOf(tp.partition()), o.offset()); });
        }
        return answer;
    }

    private static String assignor(String strategy) {
        switch (strategy) {
            case "range": return RangeAssignor.class.getName();
            case "roundrobin": return RoundRobinAssignor.class.getName();
            case "cooperative": return CooperativeStickyAssignor.class.getName();
            default: throw new IllegalArgumentException(strategy);
        }
    }

    private static final class Report implements ConsumerRebalanceListener {
        private final Set<Integer> held = new TreeSet<>();
        private void tell() { ArrayNode parts = JSON.createArrayNode(); held.forEach(parts::add); emit(JSON.createObjectNode().put("e", "assigned").set("parts", parts)); }
        @Override public void onPartitionsAssigned(Collection<TopicPartition> added) { added.forEach(p -> held.add(p.partition())); tell(); }
        @Override public void onPartitionsRevoked(Collection<TopicPartition> gone) { gone.forEach(p -> held.remove(p.partition())); tell(); }
    }

    private void member(String group, String topic, String strategy) throws Exception {
        AtomicBoolean stop = new AtomicBoolean();
        Thread waiter = new Thread(() -> { try { System.in.read(); } catch (java.io.IOException gone) { /* the same wish */ } stop.set(true); });
        waiter.setDaemon(true);
        waiter.start();
        try (KafkaConsumer<byte[], byte[]> consumer = consumer(Map.of("group.id", group, "session.timeout.ms", 6000, "heartbeat.interval.ms", 500, "auto.commit.interval.ms", 500, "partition.assignment.strategy", assignor(strategy)))) {
            consumer.subscribe(List.of(topic), new Report());
            while (!stop.get()) {
                for (ConsumerRecord<byte[], byte[]> m : consumer.poll(Duration.ofMillis(100))) {
                    emit(JSON.createObjectNode().put("e", "rec").put("p", m.partition()).put("o", m.offset()).put("k", b64(m.key())).put("v", b64(m.value())));
                }
            }
        }
        emit(JSON.createObjectNode().put("e", "closed"));
    }
}
