// franz-go behind the conversation, with kadm for topics and groups.

package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

var franzCodecs = map[string]kgo.CompressionCodec{
	"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
	"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
}

var franzBalancers = map[string]kgo.GroupBalancer{"range": kgo.RangeBalancer(), "cooperative": kgo.CooperativeStickyBalancer()}

// franz is franz-go with its default settings: what is set here is what a test is about. So its producers are always
// idempotent.
type franz struct {
	bootstrap []string
}

func franzGo(bootstrap []string) library { return franz{bootstrap} }

func (f franz) client(options ...kgo.Opt) (*kgo.Client, error) {
	return kgo.NewClient(append(options, kgo.SeedBrokers(f.bootstrap...))...)
}

// admin gives a client for topics and groups to an action.
func (f franz) admin(action func(*kadm.Client) error) error {
	_, err := asked(f, func(admin *kadm.Client) (none struct{}, err error) { return none, action(admin) })
	return err
}

// asked is what an action learns from such a client.
func asked[T any](f franz, action func(*kadm.Client) (T, error)) (answer T, err error) {
	client, err := f.client()
	if err != nil {
		return answer, err
	}
	defer client.Close()
	return action(kadm.NewClient(client))
}

func (f franz) produce(ctx context.Context, batch request) ([]position, error) {
	options := []kgo.Opt{kgo.ProducerBatchCompression(franzCodecs[batch.Codec]), kgo.AllowAutoTopicCreation()}
	if batch.Records[0].Partition != nil {
		options = append(options, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	}
	client, err := f.client(options...)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	records, outcomes := make([]*kgo.Record, len(batch.Records)), make(chan error, len(batch.Records))
	for index, r := range batch.Records {
		records[index] = franzRecord(batch.Topic, r)
		client.Produce(ctx, records[index], func(_ *kgo.Record, err error) { outcomes <- err })
		time.Sleep(pauseAfter(index, batch.Pace))
	}
	acks := make([]position, len(records))
	for range records {
		if failure := <-outcomes; failure != nil {
			return nil, failure
		}
	}
	for index, r := range records {
		acks[index] = position{int64(r.Partition), r.Offset}
	}
	return acks, nil
}

func franzRecord(topic string, r record) *kgo.Record {
	out := &kgo.Record{Topic: topic, Key: r.Key, Value: r.Value, Timestamp: r.at()}
	if r.Partition != nil {
		out.Partition = *r.Partition
	}
	for _, h := range r.Headers {
		out.Headers = append(out.Headers, kgo.RecordHeader{Key: h.name, Value: h.value})
	}
	return out
}

func (f franz) read(ctx context.Context, wanted *wanted, start *int64) error {
	offset := kgo.NewOffset().AtStart()
	if start != nil {
		offset = kgo.NewOffset().At(*start)
	}
	from := map[string]map[int32]kgo.Offset{}
	for at := range wanted.left {
		if from[at.topic] == nil {
			from[at.topic] = map[int32]kgo.Offset{}
		}
		from[at.topic][at.index] = offset
	}
	client, err := f.client(kgo.ConsumePartitions(from))
	if err != nil {
		return err
	}
	defer client.Close()
	for !wanted.done() && ctx.Err() == nil {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil && ctx.Err() == nil {
			return err
		}
		fetches.EachRecord(func(r *kgo.Record) { wanted.take(franzStored(r)) })
	}
	return nil
}

func franzStored(r *kgo.Record) stored {
	headers := make([]header, len(r.Headers))
	for index, h := range r.Headers {
		headers[index] = header{h.Key, h.Value}
	}
	return stored{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Timestamp: r.Timestamp.UnixMilli(), Key: r.Key, Value: r.Value, Headers: headers}
}

func (f franz) times(ctx context.Context, topic string, queries []query) ([]int64, error) {
	return asked(f, func(admin *kadm.Client) ([]int64, error) {
		var offsets []int64
		for _, q := range queries {
			listed, err := admin.ListOffsetsAfterMilli(ctx, q[1], topic)
			if err != nil {
				return nil, err
			}
			found, ok := listed.Lookup(topic, int32(q[0]))
			if !ok {
				return nil, fmt.Errorf("%s/%d was not listed", topic, q[0])
			}
			if found.Err != nil {
				return nil, found.Err
			}
			if found.Timestamp == -1 { // it answers with the end where there is none
				found.Offset = -1
			}
			offsets = append(offsets, found.Offset)
		}
		return offsets, nil
	})
}

func (f franz) commit(ctx context.Context, group, topic string, offsets map[int32]int64) error {
	return f.admin(func(admin *kadm.Client) error {
		var all kadm.Offsets
		for partition, offset := range offsets {
			all.AddOffset(topic, partition, offset, -1)
		}
		return admin.CommitAllOffsets(ctx, group, all)
	})
}

func (f franz) committed(ctx context.Context, group, topic string, partitions []int32) (map[int32]int64, error) {
	return asked(f, func(admin *kadm.Client) (map[int32]int64, error) {
		offsets, err := admin.FetchOffsets(ctx, group)
		if err != nil {
			return nil, err
		}
		found := map[int32]int64{}
		for _, partition := range partitions {
			if offset, ok := offsets.Lookup(topic, partition); ok && offset.At >= 0 {
				found[partition] = offset.At
			}
		}
		return found, offsets.Error()
	})
}

func (f franz) create(ctx context.Context, topic string, partitions int32, replicas int16) error {
	return f.admin(func(admin *kadm.Client) error {
		_, err := admin.CreateTopic(ctx, partitions, replicas, nil, topic)
		return err
	})
}

func (f franz) delete(ctx context.Context, topic string) error {
	return f.admin(func(admin *kadm.Client) error {
		_, err := admin.DeleteTopic(ctx, topic)
		return err
	})
}

func (f franz) topics(ctx context.Context) ([]string, error) {
	return asked(f, func(admin *kadm.Client) ([]string, error) {
		topics, err := admin.ListTopics(ctx)
		return topics.Names(), err
	})
}

func (f franz) config(ctx context.Context, topic, name string) (string, error) {
	return asked(f, func(admin *kadm.Client) (string, error) {
		told, err := admin.DescribeTopicConfigs(ctx, topic)
		if err != nil {
			return "", err
		}
		configs, err := told.On(topic, nil)
		if err = errors.Join(err, configs.Err); err != nil {
			return "", err
		}
		for _, config := range configs.Configs {
			if config.Key == name {
				return config.MaybeValue(), nil
			}
		}
		return "", fmt.Errorf("%s has no %s", topic, name)
	})
}

func (f franz) configure(ctx context.Context, topic, name, value string) error {
	return f.admin(func(admin *kadm.Client) error {
		told, err := admin.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: name, Value: &value}}, topic)
		if err != nil {
			return err
		}
		changed, err := told.On(topic, nil)
		return errors.Join(err, changed.Err)
	})
}

func (f franz) grow(ctx context.Context, topic string, partitions int32) error {
	return f.admin(func(admin *kadm.Client) error {
		told, err := admin.UpdatePartitions(ctx, int(partitions), topic)
		return errors.Join(err, told.Error())
	})
}

func (f franz) deleteRecords(ctx context.Context, topic string, partition int32, offset int64) (int64, error) {
	return asked(f, func(admin *kadm.Client) (int64, error) {
		var before kadm.Offsets
		before.AddOffset(topic, partition, offset, -1)
		told, err := admin.DeleteRecords(ctx, before)
		if err != nil {
			return 0, err
		}
		left, err := told.On(topic, partition, nil)
		return left.LowWatermark, errors.Join(err, left.Err)
	})
}

func (f franz) groups(ctx context.Context) ([]string, error) {
	return asked(f, func(admin *kadm.Client) ([]string, error) {
		groups, err := admin.ListGroups(ctx)
		return groups.Groups(), err
	})
}

func (f franz) describeGroup(ctx context.Context, group string) (string, error) {
	return asked(f, func(admin *kadm.Client) (string, error) {
		groups, err := admin.DescribeGroups(ctx, group)
		return groups[group].State, errors.Join(err, groups.Error())
	})
}

func (f franz) deleteGroup(ctx context.Context, group string) error {
	return f.admin(func(admin *kadm.Client) error {
		_, err := admin.DeleteGroup(ctx, group)
		return err
	})
}

// consume marks a record once it is shown, and only what is marked is committed. Rebalances wait while records are shown,
// as otherwise some could be shown that are somebody else's already.
func (f franz) consume(ctx context.Context, as membership, held *holding, show func(int32, int64, []byte, []byte)) error {
	revoked := func(ctx context.Context, client *kgo.Client, parts map[string][]int32) {
		if err := client.CommitMarkedOffsets(ctx); err != nil {
			log.Printf("committing as partitions are revoked: %v", err)
		}
		held.remove(parts[as.topic]...)
	}
	options := []kgo.Opt{
		kgo.ConsumerGroup(as.group), kgo.ConsumeTopics(as.topic), kgo.Balancers(franzBalancers[as.strategy]),
		kgo.SessionTimeout(as.sessionTimeout()), kgo.HeartbeatInterval(heartbeatInterval), kgo.AutoCommitInterval(commitInterval),
		kgo.AutoCommitMarks(), kgo.BlockRebalanceOnPoll(), kgo.OnPartitionsRevoked(revoked),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, parts map[string][]int32) { held.add(parts[as.topic]...) }),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, parts map[string][]int32) { held.remove(parts[as.topic]...) }),
	}
	if as.instance != "" {
		options = append(options, kgo.InstanceID(as.instance))
	}
	client, err := f.client(options...)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil && ctx.Err() == nil {
			log.Printf("polling for %s: %v", as.group, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			show(r.Partition, r.Offset, r.Key, r.Value)
			client.MarkCommitRecords(r)
		})
		client.AllowRebalance()
	}
	client.CloseAllowingRebalance()
	return nil
}
