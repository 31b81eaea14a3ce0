// Writes a todo over gRPC, lists it, and sees it arrive; by stubs that were generated from /descriptors.binpb.
//
//	walk HOST:PORT KEY
package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"log"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	todov1 "flotilla.example/walk/gen/flotilla/todo/v1"
)

// Only what may be called twice: reads, and calls with an idempotency key.
const retries = `{"methodConfig": [{
	"name": [
		{"service": "flotilla.todo.v1.TodoService", "method": "CreateTodo"},
		{"service": "flotilla.todo.v1.TodoService", "method": "GetTodo"},
		{"service": "flotilla.todo.v1.TodoService", "method": "ListTodos"}],
	"retryPolicy": {"maxAttempts": 3, "initialBackoff": "1s", "maxBackoff": "2s", "backoffMultiplier": 2,
		"retryableStatusCodes": ["UNAVAILABLE"]}}]}`

func main() {
	log.SetFlags(0)
	if len(os.Args) != 3 {
		log.Fatal("walk HOST:PORT KEY")
	}
	id, err := walk(os.Args[1], os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("wrote, listed and heard", id)
}

func walk(address, key string) (string, error) {
	connection, err := grpc.NewClient(address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(retries),
		// Streams have no deadline: a connection that is gone is noticed by its silence.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second}))
	if err != nil {
		return "", err
	}
	defer connection.Close()
	todos := todov1.NewTodoServiceClient(connection)
	caller := metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+key)
	within, done := context.WithTimeout(caller, 10*time.Second)
	defer done()

	watched, stop := context.WithCancel(caller)
	defer stop()
	arriving, err := todos.WatchTodos(watched, &todov1.WatchTodosRequest{})
	if err != nil {
		return "", err
	}
	// The stream says at once where it is: from here on nothing is missed.
	if first, err := arriving.Recv(); err != nil || first.GetHeartbeat() == nil {
		return "", fmt.Errorf("no heartbeat: %v %w", first, err)
	}

	label := "walk-" + rand.Text()
	once := metadata.AppendToOutgoingContext(within, "idempotency-key", rand.Text())
	todo := &todov1.Todo{Title: "Splice the mooring line", Labels: []string{label}}
	written, err := todos.CreateTodo(once, &todov1.CreateTodoRequest{Todo: todo})
	if err != nil {
		return "", err
	}

	filter := fmt.Sprintf("labels:%q AND status = OPEN", label)
	found, err := todos.ListTodos(within, &todov1.ListTodosRequest{Filter: filter, OrderBy: "due_time", PageSize: 10})
	if err != nil {
		return "", err
	}
	if len(found.Todos) != 1 || found.Todos[0].Id != written.Id {
		return "", fmt.Errorf("listed %v", found)
	}

	for {
		message, err := arriving.Recv()
		if err != nil {
			return "", err
		}
		if message.GetTodo().GetId() == written.Id {
			break
		}
	}

	_, err = todos.GetTodo(within, &todov1.GetTodoRequest{Id: "0193a5b0-7a52-7c3e-9b1e-6a1f0c9d2e4f"})
	if status.Code(err) != codes.NotFound || reason(err) != "TODO_NOT_FOUND" {
		return "", fmt.Errorf("not there: %w", err)
	}
	return written.Id, nil
}

// The stable reason of an error, of its details.
func reason(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, is := detail.(*errdetails.ErrorInfo); is {
			return info.Reason
		}
	}
	return ""
}
