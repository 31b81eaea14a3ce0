"""Writes a todo over gRPC, lists it, and sees it arrive; by stubs that were generated from /descriptors.binpb.

    grpc_walk.py HOST:PORT KEY
"""

import json
import sys
import uuid

import grpc
from flotilla.todo.v1 import todo_pb2, todo_pb2_grpc
from google.rpc import error_details_pb2, status_pb2

# Only what may be called twice: reads, and calls with an idempotency key.
RETRIES = {
    "methodConfig": [
        {
            "name": [
                {"service": "flotilla.todo.v1.TodoService", "method": method}
                for method in ("CreateTodo", "GetTodo", "ListTodos")
            ],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
OPTIONS = [
    ("grpc.service_config", json.dumps(RETRIES)),
    # Streams have no deadline: a connection that is gone is noticed by its silence.
    ("grpc.keepalive_time_ms", 20_000),
    # A watcher sends nothing meanwhile.
    ("grpc.http2.max_pings_without_data", 0),
]
SECONDS = 10


def reason(error: grpc.RpcError) -> str:
    """The stable reason of an error: its details are a google.rpc.Status in the trailers."""
    details = dict(error.trailing_metadata())["grpc-status-details-bin"]
    for detail in status_pb2.Status.FromString(details).details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info.reason
    raise error


def main(address: str, key: str) -> None:
    caller = [("authorization", f"Bearer {key}")]
    with grpc.insecure_channel(address, options=OPTIONS) as channel:
        todos = todo_pb2_grpc.TodoServiceStub(channel)
        arriving = todos.WatchTodos(todo_pb2.WatchTodosRequest(), metadata=caller)
        # The stream says at once where it is: from here on nothing is missed.
        first = next(arriving)
        assert first.WhichOneof("change") == "heartbeat", first

        label = f"walk-{uuid.uuid4()}"
        todo = todo_pb2.Todo(title="Splice the mooring line", labels=[label])
        once = caller + [("idempotency-key", str(uuid.uuid4()))]
        written = todos.CreateTodo(todo_pb2.CreateTodoRequest(todo=todo), metadata=once, timeout=SECONDS)

        listed = todo_pb2.ListTodosRequest(filter=f'labels:"{label}" AND status = OPEN', order_by="due_time", page_size=10)
        found = todos.ListTodos(listed, metadata=caller, timeout=SECONDS)
        assert [each.id for each in found.todos] == [written.id], found

        for message in arriving:
            if message.todo.id == written.id:
                break
        arriving.cancel()

        try:
            todos.GetTodo(todo_pb2.GetTodoRequest(id=str(uuid.uuid4())), metadata=caller, timeout=SECONDS)
            raise SystemExit("there is such a todo")
        except grpc.RpcError as error:
            assert (error.code(), reason(error)) == (grpc.StatusCode.NOT_FOUND, "TODO_NOT_FOUND"), error
    print(f"wrote, listed and heard {written.id}")


if __name__ == "__main__":
    main(*sys.argv[1:])
