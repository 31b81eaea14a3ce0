// Prints a tenant's todo events as they come. Its durable consumer remembers what was read: run it again, and it goes on
// where it ended.
//
//	bin/flotilla nats-credentials create --tenant acme --name reporting
//	go run . ../../../.flotilla/secrets/nats/team-acme_reporting.creds nats://127.0.0.1:14222 [how many]
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// What this program reads of an event; unknown fields are none of its business.
type event struct {
	Type         string `json:"type"`
	Subject      string `json:"subject"`
	Sequence     string `json:"sequence"`
	SupersededBy string `json:"supersededby"`
	Data         struct {
		Todo struct {
			Title string `json:"title"`
		} `json:"todo"`
	} `json:"data"`
}

// The types it knows. One whose newer twin it knows is passed over: the twin tells the same.
var known = map[string]bool{
	"todo.created.v1": true, "todo.updated.v1": true, "todo.reopened.v1": true, "todo.became_due.v1": true,
	"todo.deleted.v1": true, "todo.completed.v1": true, "todo.completed.v2": true,
}

func main() {
	if len(os.Args) < 3 {
		log.Fatal("usage: consume CREDENTIALS-FILE URL [HOW MANY]")
	}
	count := 0
	if len(os.Args) > 3 {
		count, _ = strconv.Atoi(os.Args[3])
	}
	if err := run(context.Background(), os.Args[1], os.Args[2], count); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, credentials, url string, count int) error {
	client, err := nats.Connect(url, nats.UserCredentials(credentials), nats.MaxReconnects(-1))
	if err != nil {
		return err
	}
	defer client.Drain()
	js, err := jetstream.New(client)
	if err != nil {
		return err
	}
	// The durable consumer was made with the credentials, and is called as their file is. Nothing is asked of the stream.
	durable := strings.TrimSuffix(filepath.Base(credentials), ".creds")
	consumer, err := js.Consumer(ctx, "EVENTS_TODO", durable)
	if err != nil {
		return err
	}
	messages, err := consumer.Messages()
	if err != nil {
		return err
	}
	defer messages.Stop()
	for seen := 0; count == 0 || seen < count; {
		message, err := messages.Next()
		if err != nil {
			return err
		}
		var e event
		if err := json.Unmarshal(message.Data(), &e); err != nil {
			return fmt.Errorf("message on %s: %w", message.Subject(), err)
		}
		if known[e.Type] && !known[e.SupersededBy] {
			version, _ := strconv.Atoi(e.Sequence)
			fmt.Println(e.Type, e.Subject, version, e.Data.Todo.Title)
			seen++
		}
		// Once the server has the acknowledgement, the event is never delivered again.
		if err := message.DoubleAck(ctx); err != nil {
			return err
		}
	}
	return nil
}
