// The conversation and what both libraries need for it. No client library is imported here.

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"
)

// operationTimeout is how long one request may take that names no time itself.
const operationTimeout = 60 * time.Second

// library is what the conversation asks of a client library. Each call makes a client of its own, which knows nothing of
// what the broker was before.
type library interface {
	// produce returns where each record went, in their order.
	produce(ctx context.Context, batch request) ([]position, error)
	// read gives records to wanted, from start on or from each partition's beginning, until it is done or ctx is.
	read(ctx context.Context, wanted *wanted, start *int64) error
	// times returns the first offset at or after each query's time, -1 where there is none.
	times(ctx context.Context, topic string, queries []query) ([]int64, error)
	commit(ctx context.Context, group, topic string, offsets map[int32]int64) error
	committed(ctx context.Context, group, topic string, partitions []int32) (map[int32]int64, error)

	create(ctx context.Context, topic string, partitions int32, replicas int16) error
	delete(ctx context.Context, topic string) error
	topics(ctx context.Context) ([]string, error)
	config(ctx context.Context, topic, name string) (string, error)
	configure(ctx context.Context, topic, name, value string) error
	grow(ctx context.Context, topic string, partitions int32) error
	// deleteRecords returns the first offset that is left.
	deleteRecords(ctx context.Context, topic string, partition int32, offset int64) (int64, error)
	groups(ctx context.Context) ([]string, error)
	describeGroup(ctx context.Context, group string) (string, error)
	deleteGroup(ctx context.Context, group string) error

	// consume is a member of a group until ctx is done; then it commits what it showed, and ends in order.
	consume(ctx context.Context, as membership, held *holding, show func(partition int32, offset int64, key, value []byte)) error
}

// membership says which member of a group to be. One with an instance ends without leaving.
type membership struct {
	group, topic, strategy, instance string
}

// sessionTimeout is the same in every agent: static members may be away for longer.
func (m membership) sessionTimeout() time.Duration {
	if m.instance != "" {
		return 20 * time.Second
	}
	return 6 * time.Second
}

// Intervals of members, the same in every agent.
const heartbeatInterval, commitInterval = 500 * time.Millisecond, 500 * time.Millisecond

// request is a line from the driver; which fields it has depends on the op.
type request struct {
	Op         string                   `json:"op"`
	Topic      string                   `json:"topic"`
	Codec      string                   `json:"codec"`
	Records    []record                 `json:"records"`
	Idempotent bool                     `json:"idempotent"`
	Pace       int                      `json:"pace"`
	Want       map[string]map[int32]int `json:"want"`
	Start      *int64                   `json:"start"`
	TimeoutS   float64                  `json:"timeout_s"`
	Queries    []query                  `json:"queries"`
	Group      string                   `json:"group"`
	Offsets    map[int32]int64          `json:"offsets"`
	Name       string                   `json:"name"`
	Value      string                   `json:"value"`
	Partition  int32                    `json:"partition"`
	Offset     int64                    `json:"offset"`
	// A count, but for committed, which lists them.
	Partitions json.RawMessage `json:"partitions"`
}

// query is a partition and a time in milliseconds.
type query [2]int64

// position is a partition and an offset.
type position [2]int64

// record is to be produced. Bytes travel as base64, and null is nil.
type record struct {
	Partition *int32   `json:"p"`
	Key       []byte   `json:"k"`
	Value     []byte   `json:"v"`
	Headers   []header `json:"h"`
	Timestamp *int64   `json:"ts"`
}

// at is the record's timestamp, or the zero time, which both libraries take for now.
func (r record) at() time.Time {
	if r.Timestamp == nil {
		return time.Time{}
	}
	return time.UnixMilli(*r.Timestamp)
}

// stored is a record that was read.
type stored struct {
	Topic     string   `json:"t"`
	Partition int32    `json:"p"`
	Offset    int64    `json:"o"`
	Timestamp int64    `json:"ts"`
	Key       []byte   `json:"k"`
	Value     []byte   `json:"v"`
	Headers   []header `json:"h"`
}

// header travels as [name, value].
type header struct {
	name  string
	value []byte
}

func (h header) MarshalJSON() ([]byte, error) { return json.Marshal([]any{h.name, h.value}) }

func (h *header) UnmarshalJSON(text []byte) error {
	return json.Unmarshal(text, &[]any{&h.name, &h.value})
}

var emitting sync.Mutex

func emit(event any) {
	line, err := json.Marshal(event)
	if err != nil {
		log.Fatal(err)
	}
	emitting.Lock()
	defer emitting.Unlock()
	if _, err := os.Stdout.Write(append(line, '\n')); err != nil {
		log.Fatal(err)
	}
}

// serve answers requests until stdin closes.
func serve(client library) {
	requests := json.NewDecoder(os.Stdin)
	for {
		var r request
		if err := requests.Decode(&r); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			log.Fatal(err)
		}
		answer, err := perform(client, r)
		if err != nil { // the driver decides whether a refusal was wanted
			log.Printf("%s: %v", r.Op, err)
			answer = map[string]any{"error": err.Error()}
		}
		emit(answer)
	}
}

func perform(client library, r request) (map[string]any, error) {
	ctx, cancel := context.WithTimeout(context.Background(), operationTimeout)
	defer cancel()
	switch r.Op {
	case "produce":
		acks, err := client.produce(ctx, r)
		return map[string]any{"acks": acks}, err
	case "read":
		return read(client, r)
	case "times":
		offsets, err := client.times(ctx, r.Topic, r.Queries)
		return map[string]any{"offsets": offsets}, err
	case "commit":
		return map[string]any{}, client.commit(ctx, r.Group, r.Topic, r.Offsets)
	case "committed":
		var partitions []int32
		if err := json.Unmarshal(r.Partitions, &partitions); err != nil {
			return nil, err
		}
		offsets, err := client.committed(ctx, r.Group, r.Topic, partitions)
		return map[string]any{"offsets": offsets}, err
	case "groups":
		groups, err := client.groups(ctx)
		return map[string]any{"groups": groups}, err
	case "describe_group":
		state, err := client.describeGroup(ctx, r.Group)
		return map[string]any{"state": state}, err
	case "delete_group":
		return map[string]any{}, client.deleteGroup(ctx, r.Group)
	case "static":
		return staticMembers(client, r)
	default:
		return administer(ctx, client, r)
	}
}

// administer performs what is about topics.
func administer(ctx context.Context, client library, r request) (map[string]any, error) {
	switch r.Op {
	case "create":
		count, err := partitionCount(r)
		if err != nil {
			return nil, err
		}
		replicas, err := strconv.ParseInt(os.Getenv("REPLICAS"), 10, 16)
		if err != nil {
			return nil, err
		}
		return map[string]any{}, client.create(ctx, r.Topic, count, int16(replicas))
	case "delete":
		return map[string]any{}, client.delete(ctx, r.Topic)
	case "topics":
		topics, err := client.topics(ctx)
		slices.Sort(topics)
		return map[string]any{"topics": topics}, err
	case "config":
		value, err := client.config(ctx, r.Topic, r.Name)
		return map[string]any{"value": value}, err
	case "configure":
		return map[string]any{}, client.configure(ctx, r.Topic, r.Name, r.Value)
	case "grow":
		count, err := partitionCount(r)
		if err != nil {
			return nil, err
		}
		return map[string]any{}, client.grow(ctx, r.Topic, count)
	case "delete_records":
		low, err := client.deleteRecords(ctx, r.Topic, r.Partition, r.Offset)
		return map[string]any{"low": low}, err
	default:
		return nil, fmt.Errorf("unknown op %q", r.Op)
	}
}

func partitionCount(r request) (int32, error) {
	var count int32
	err := json.Unmarshal(r.Partitions, &count)
	return count, err
}

func read(client library, r request) (map[string]any, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(r.TimeoutS*float64(time.Second)))
	defer cancel()
	wanted := newWanted(r.Want)
	err := client.read(ctx, wanted, r.Start)
	return map[string]any{"records": wanted.records}, err
}

// pauseAfter is how long to wait after this record so that about pace a second go out; nothing for as fast as can be.
func pauseAfter(index, pace int) time.Duration {
	if pace > 0 && index%50 == 49 {
		return 50 * time.Second / time.Duration(pace)
	}
	return 0
}

// partition is one of a topic.
type partition struct {
	topic string
	index int32
}

// wanted counts down the records that a read still waits for.
type wanted struct {
	left    map[partition]int
	records []stored
}

func newWanted(want map[string]map[int32]int) *wanted {
	w := &wanted{left: map[partition]int{}, records: []stored{}}
	for topic, parts := range want {
		for index, count := range parts {
			if count > 0 {
				w.left[partition{topic, index}] = count
			}
		}
	}
	return w
}

func (w *wanted) take(r stored) {
	w.records = append(w.records, r)
	at := partition{r.Topic, r.Partition}
	if w.left[at]--; w.left[at] <= 0 {
		delete(w.left, at)
	}
}

func (w *wanted) done() bool { return len(w.left) == 0 }

// holding is what a member holds. Libraries change it from goroutines of theirs.
type holding struct {
	lock        sync.Mutex
	parts       []int32
	assignments int
	tell        func(parts []int32)
}

func newHolding(tell func(parts []int32)) *holding { return &holding{parts: []int32{}, tell: tell} }

func (h *holding) add(parts ...int32) {
	h.change(func() {
		h.assignments++
		h.parts = append(h.parts, parts...)
		slices.Sort(h.parts)
		h.parts = slices.Compact(h.parts)
	})
}

func (h *holding) remove(parts ...int32) {
	h.change(func() {
		h.parts = slices.DeleteFunc(h.parts, func(held int32) bool { return slices.Contains(parts, held) })
	})
}

// change tells what is held under the lock, so that what was told last is so.
func (h *holding) change(how func()) {
	h.lock.Lock()
	defer h.lock.Unlock()
	how()
	h.tell(h.parts)
}

// now is what is held, and how often something was assigned.
func (h *holding) now() ([]int32, int) {
	h.lock.Lock()
	defer h.lock.Unlock()
	return slices.Clone(h.parts), h.assignments
}
