// sarama behind the conversation.

package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/IBM/sarama"
)

// sendTries is for batches that a broker does not take, which sarama otherwise gives up after three tries and 300 ms: less
// than a broker's start takes. The other clients' default is for ever, or two minutes.
const sendTries = 600

// saramaClient is sarama with its default settings, which are those for Kafka 2.8: what is set here is what a test is about.
type saramaClient struct {
	bootstrap []string
}

func saramaLibrary(bootstrap []string) library {
	sarama.Logger = log.New(os.Stderr, "sarama: ", log.LstdFlags)
	return saramaClient{bootstrap}
}

// admin gives a client for topics and groups to an action.
func (s saramaClient) admin(action func(sarama.ClusterAdmin) error) error {
	admin, err := sarama.NewClusterAdmin(s.bootstrap, sarama.NewConfig())
	if err != nil {
		return err
	}
	return errors.Join(action(admin), admin.Close())
}

// with gives a client that looks things up to an action.
func (s saramaClient) with(config *sarama.Config, action func(sarama.Client) error) error {
	client, err := sarama.NewClient(s.bootstrap, config)
	if err != nil {
		return err
	}
	return errors.Join(action(client), client.Close())
}

func (s saramaClient) produce(_ context.Context, batch request) ([]position, error) {
	config, err := producing(batch)
	if err != nil {
		return nil, err
	}
	producer, err := sarama.NewAsyncProducer(s.bootstrap, config)
	if err != nil {
		return nil, err
	}
	go func() {
		for index, r := range batch.Records {
			producer.Input() <- saramaMessage(batch.Topic, index, r)
			time.Sleep(pauseAfter(index, batch.Pace))
		}
	}()
	// Only then is it closed: what it would send again after that, it may refuse instead.
	acks := make([]position, len(batch.Records))
	for range batch.Records {
		select {
		case m := <-producer.Successes():
			acks[m.Metadata.(int)] = position{int64(m.Partition), m.Offset}
		case failed := <-producer.Errors():
			err = failed
		}
	}
	return acks, errors.Join(err, producer.Close())
}

func producing(batch request) (*sarama.Config, error) {
	config := sarama.NewConfig()
	config.Producer.Return.Successes = true
	config.Producer.Retry.Max = sendTries
	if batch.Records[0].Partition != nil {
		config.Producer.Partitioner = sarama.NewManualPartitioner
	}
	if batch.Idempotent { // which asks for the two others
		config.Producer.Idempotent, config.Producer.RequiredAcks, config.Net.MaxOpenRequests = true, sarama.WaitForAll, 1
		// Once it has asked for a leader three times in vain, for 750 ms, it refuses everything for ten seconds.
		config.Metadata.Retry.Max = sendTries
	}
	err := config.Producer.Compression.UnmarshalText([]byte(batch.Codec))
	return config, err
}

func saramaMessage(topic string, index int, r record) *sarama.ProducerMessage {
	out := &sarama.ProducerMessage{Topic: topic, Timestamp: r.at(), Metadata: index}
	if r.Partition != nil {
		out.Partition = *r.Partition
	}
	if r.Key != nil {
		out.Key = sarama.ByteEncoder(r.Key)
	}
	if r.Value != nil {
		out.Value = sarama.ByteEncoder(r.Value)
	}
	for _, h := range r.Headers {
		out.Headers = append(out.Headers, sarama.RecordHeader{Key: []byte(h.name), Value: h.value})
	}
	return out
}

func (s saramaClient) read(ctx context.Context, wanted *wanted, start *int64) error {
	offset := sarama.OffsetOldest
	if start != nil {
		offset = *start
	}
	consumer, err := sarama.NewConsumer(s.bootstrap, sarama.NewConfig())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	readers := readers{messages: make(chan *sarama.ConsumerMessage)}
	for at := range wanted.left {
		if err = readers.open(ctx, consumer, at, offset); err != nil {
			break
		}
	}
	for err == nil && !wanted.done() && ctx.Err() == nil {
		select {
		case m := <-readers.messages:
			wanted.take(saramaStored(m))
		case <-ctx.Done():
		}
	}
	cancel()
	readers.close()
	return errors.Join(err, consumer.Close())
}

// readers bring the messages of several partitions together.
type readers struct {
	messages chan *sarama.ConsumerMessage
	parts    []sarama.PartitionConsumer
	running  sync.WaitGroup
}

func (r *readers) open(ctx context.Context, consumer sarama.Consumer, at partition, offset int64) error {
	part, err := consumer.ConsumePartition(at.topic, at.index, offset)
	if err != nil {
		return fmt.Errorf("%s/%d: %w", at.topic, at.index, err)
	}
	r.parts = append(r.parts, part)
	r.running.Go(func() {
		// Once ctx is done the rest is dropped, as a partition closes only when all was taken from it.
		for m := range part.Messages() {
			select {
			case r.messages <- m:
			case <-ctx.Done():
			}
		}
	})
	return nil
}

func (r *readers) close() {
	for _, part := range r.parts {
		part.AsyncClose()
	}
	r.running.Wait()
}

func saramaStored(m *sarama.ConsumerMessage) stored {
	headers := make([]header, len(m.Headers))
	for index, h := range m.Headers {
		headers[index] = header{string(h.Key), h.Value}
	}
	return stored{Topic: m.Topic, Partition: m.Partition, Offset: m.Offset, Timestamp: m.Timestamp.UnixMilli(), Key: m.Key, Value: m.Value, Headers: headers}
}

func (s saramaClient) times(_ context.Context, topic string, queries []query) ([]int64, error) {
	var offsets []int64
	err := s.with(sarama.NewConfig(), func(client sarama.Client) error {
		for _, q := range queries {
			offset, err := client.GetOffset(topic, int32(q[0]), q[1])
			if err != nil {
				return err
			}
			offsets = append(offsets, offset)
		}
		return nil
	})
	return offsets, err
}

// commit marks offsets and has them committed by the close, which says only to the partitions what went wrong.
func (s saramaClient) commit(_ context.Context, group, topic string, offsets map[int32]int64) error {
	config := sarama.NewConfig()
	config.Consumer.Return.Errors = true
	return s.with(config, func(client sarama.Client) error {
		manager, err := sarama.NewOffsetManagerFromClient(group, client)
		if err != nil {
			return err
		}
		var marked []sarama.PartitionOffsetManager
		for partition, offset := range offsets {
			managed, failure := manager.ManagePartition(topic, partition)
			if failure != nil {
				return errors.Join(failure, manager.Close())
			}
			managed.MarkOffset(offset, "")
			marked = append(marked, managed)
		}
		err = manager.Close()
		for _, managed := range marked {
			for failure := range managed.Errors() {
				err = errors.Join(err, failure)
			}
		}
		return err
	})
}

func (s saramaClient) committed(_ context.Context, group, topic string, partitions []int32) (map[int32]int64, error) {
	found := map[int32]int64{}
	err := s.admin(func(admin sarama.ClusterAdmin) error {
		offsets, err := admin.ListConsumerGroupOffsets(group, map[string][]int32{topic: partitions})
		if err != nil {
			return err
		}
		for _, partition := range partitions {
			block := offsets.GetBlock(topic, partition)
			if block == nil {
				return fmt.Errorf("%s/%d is not in the answer", topic, partition)
			}
			if !errors.Is(block.Err, sarama.ErrNoError) {
				return block.Err
			}
			if block.Offset >= 0 {
				found[partition] = block.Offset
			}
		}
		return nil
	})
	return found, err
}

func (s saramaClient) create(_ context.Context, topic string, partitions int32, replicas int16) error {
	return s.admin(func(admin sarama.ClusterAdmin) error {
		return admin.CreateTopic(topic, &sarama.TopicDetail{NumPartitions: partitions, ReplicationFactor: replicas}, false)
	})
}

func (s saramaClient) delete(_ context.Context, topic string) error {
	return s.admin(func(admin sarama.ClusterAdmin) error { return admin.DeleteTopic(topic) })
}

func (s saramaClient) topics(context.Context) ([]string, error) {
	var names []string
	err := s.admin(func(admin sarama.ClusterAdmin) error {
		topics, err := admin.ListTopics()
		names = slices.Collect(maps.Keys(topics))
		return err
	})
	return names, err
}

func (s saramaClient) config(_ context.Context, topic, name string) (string, error) {
	var value string
	err := s.admin(func(admin sarama.ClusterAdmin) error {
		resource := &sarama.ConfigResource{Type: sarama.TopicResource, Name: topic}
		told, err := admin.DescribeConfigs([]*sarama.ConfigResource{resource}, sarama.DescribeConfigsOptions{})
		if err != nil {
			return err
		}
		for _, entry := range told[0].Configs {
			if entry.Name == name {
				value = entry.Value
				return nil
			}
		}
		return fmt.Errorf("%s has no %s", topic, name)
	})
	return value, err
}

func (s saramaClient) configure(_ context.Context, topic, name, value string) error {
	return s.admin(func(admin sarama.ClusterAdmin) error {
		set := sarama.IncrementalAlterConfigsEntry{Operation: sarama.IncrementalAlterConfigsOperationSet, Value: &value}
		return admin.IncrementalAlterConfig(sarama.TopicResource, topic, map[string]sarama.IncrementalAlterConfigsEntry{name: set}, false)
	})
}

func (s saramaClient) grow(_ context.Context, topic string, partitions int32) error {
	return s.admin(func(admin sarama.ClusterAdmin) error { return admin.CreatePartitions(topic, partitions, nil, false) })
}

// deleteRecords asks for the first offset by itself, because sarama does not say what was answered.
func (s saramaClient) deleteRecords(_ context.Context, topic string, partition int32, offset int64) (int64, error) {
	err := s.admin(func(admin sarama.ClusterAdmin) error {
		return admin.DeleteRecords(topic, map[int32]int64{partition: offset})
	})
	if err != nil {
		return 0, err
	}
	oldest, err := s.times(context.Background(), topic, []query{{int64(partition), sarama.OffsetOldest}})
	if err != nil {
		return 0, err
	}
	return oldest[0], nil
}

func (s saramaClient) groups(context.Context) ([]string, error) {
	var names []string
	err := s.admin(func(admin sarama.ClusterAdmin) error {
		groups, err := admin.ListConsumerGroups()
		names = slices.Collect(maps.Keys(groups))
		return err
	})
	return names, err
}

func (s saramaClient) describeGroup(_ context.Context, group string) (string, error) {
	var state string
	err := s.admin(func(admin sarama.ClusterAdmin) error {
		groups, err := admin.DescribeConsumerGroups([]string{group})
		if err != nil {
			return err
		}
		state = groups[0].State
		if !errors.Is(groups[0].Err, sarama.ErrNoError) {
			return groups[0].Err
		}
		return nil
	})
	return state, err
}

func (s saramaClient) deleteGroup(_ context.Context, group string) error {
	return s.admin(func(admin sarama.ClusterAdmin) error { return admin.DeleteConsumerGroup(group) })
}

func (s saramaClient) consume(ctx context.Context, as membership, held *holding, show func(int32, int64, []byte, []byte)) error {
	group, err := sarama.NewConsumerGroup(s.bootstrap, as.group, consuming(as))
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		if err := group.Consume(ctx, []string{as.topic}, claims{held, show}); err != nil {
			log.Printf("a session of %s ended: %v", as.group, err)
		}
	}
	return group.Close()
}

func consuming(as membership) *sarama.Config {
	config := sarama.NewConfig()
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	config.Consumer.Offsets.AutoCommit.Interval = commitInterval
	config.Consumer.Group.Session.Timeout = as.sessionTimeout()
	config.Consumer.Group.Heartbeat.Interval = heartbeatInterval
	config.Consumer.Group.InstanceId = as.instance
	if as.strategy == "cooperative" { // it has a state: one for each group
		config.Consumer.Group.Rebalance.GroupStrategies = []sarama.BalanceStrategy{sarama.NewBalanceStrategyCooperativeSticky()}
	}
	return config
}

// claims shows what is read. A partition is held while it is claimed: under the cooperative protocol sarama tells nothing else.
type claims struct {
	held *holding
	show func(int32, int64, []byte, []byte)
}

func (c claims) Setup(sarama.ConsumerGroupSession) error   { return nil }
func (c claims) Cleanup(sarama.ConsumerGroupSession) error { return nil }

// ConsumeClaim marks a record once it is shown, and only what is marked is committed.
func (c claims) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	c.held.add(claim.Partition())
	defer c.held.remove(claim.Partition())
	for {
		select {
		case m, open := <-claim.Messages():
			if !open {
				return nil
			}
			c.show(m.Partition, m.Offset, m.Key, m.Value)
			session.MarkMessage(m, "")
		case <-session.Context().Done():
			return nil
		}
	}
}
