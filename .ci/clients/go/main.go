// Command agent puts the Go client libraries behind the agents' conversation, which ../agent.py tells: the first argument
// names the library, the rest are those of every agent.
package main

import (
	"context"
	"log"
	"os"
	"strings"
)

func main() {
	libraries := map[string]func(bootstrap []string) library{"franz-go": franzGo, "sarama": saramaLibrary}
	if len(os.Args) < 4 || libraries[os.Args[1]] == nil {
		log.Fatal("usage: agent franz-go|sarama serve BOOTSTRAP\n       agent franz-go|sarama member BOOTSTRAP GROUP TOPIC STRATEGY")
	}
	mode, arguments := os.Args[2], os.Args[4:]
	client := libraries[os.Args[1]](strings.Split(os.Args[3], ","))
	if mode == "serve" {
		serve(client)
		return
	}
	if err := member(client, arguments[0], arguments[1], arguments[2]); err != nil {
		log.Fatal(err)
	}
}

// member is one member of a group: it prints what it holds and what it reads until a line arrives on stdin.
func member(client library, group, topic, strategy string) error {
	held := newHolding(func(parts []int32) { emit(map[string]any{"e": "assigned", "parts": parts}) })
	membership := membership{group: group, topic: topic, strategy: strategy}
	if err := client.consume(untilLine(os.Stdin), membership, held, showRecord); err != nil {
		return err
	}
	emit(map[string]any{"e": "closed"})
	return nil
}

func showRecord(partition int32, offset int64, key, value []byte) {
	emit(map[string]any{"e": "rec", "p": partition, "o": offset, "k": key, "v": value})
}

// untilLine is done when the driver writes a line, or closes stdin.
func untilLine(input *os.File) context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		// What it reads, or why it cannot, is the same wish.
		_, _ = input.Read(make([]byte, 1))
		cancel()
	}()
	return ctx
}
