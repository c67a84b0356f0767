// Static members: the one request that takes several consumers at once. No client library is imported here.

package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	sharedWithin = 40 * time.Second
	endsWithin   = 20 * time.Second
	// A rebalance would be told with a heartbeat's answer.
	undisturbedFor = 2 * heartbeatInterval
)

// staticMembers does what static_members of agent.py does: two of them share, one ends and comes back under its name. It tells
// what each held before and after, and how often the one that stayed was assigned anything meanwhile.
func staticMembers(client library, r request) (map[string]any, error) {
	count, err := partitionCount(r)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), sharedWithin)
	defer cancel()

	leaving, staying := joinStatic(client, r, "leaving"), joinStatic(client, r, "staying")
	defer leaving.abandon()
	defer staying.abandon()
	if err := shared(ctx, int(count), leaving, staying); err != nil {
		return nil, err
	}
	before, assignments := [][]int32{leaving.parts(), staying.parts()}, staying.assignments()
	if err := leaving.close(); err != nil {
		return nil, err
	}
	back := joinStatic(client, r, "leaving")
	defer back.abandon()
	if err := shared(ctx, int(count), back, staying); err != nil {
		return nil, err
	}
	time.Sleep(undisturbedFor)
	after, disturbed := [][]int32{back.parts(), staying.parts()}, staying.assignments()-assignments
	return map[string]any{"before": before, "after": after, "disturbed": disturbed}, errors.Join(back.close(), staying.close())
}

// staticMember is a consumer with an instance id, polled in a goroutine of its own.
type staticMember struct {
	held    *holding
	abandon context.CancelFunc
	ended   chan error
}

func joinStatic(client library, r request, instance string) *staticMember {
	ctx, cancel := context.WithCancel(context.Background())
	m := &staticMember{held: newHolding(func([]int32) {}), abandon: cancel, ended: make(chan error, 1)}
	as := membership{group: r.Group, topic: r.Topic, strategy: "range", instance: instance}
	go func() { m.ended <- client.consume(ctx, as, m.held, func(int32, int64, []byte, []byte) {}) }()
	return m
}

func (m *staticMember) parts() []int32 {
	parts, _ := m.held.now()
	return parts
}

func (m *staticMember) assignments() int {
	_, count := m.held.now()
	return count
}

func (m *staticMember) close() error {
	m.abandon()
	select {
	case err := <-m.ended:
		return err
	case <-time.After(endsWithin):
		return fmt.Errorf("a static member did not end within %s", endsWithin)
	}
}

// shared waits until each holds something and all is held.
func shared(ctx context.Context, partitions int, one, other *staticMember) error {
	for {
		first, second := one.parts(), other.parts()
		if len(first) > 0 && len(second) > 0 && len(first)+len(second) == partitions {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("static members held %v and %v after %s", first, second, sharedWithin)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
