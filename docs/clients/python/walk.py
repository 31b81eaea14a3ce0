"""Writes a todo by a client that was generated from /openapi.json, lists it, and sees it arrive.

    walk.py URL KEY
"""

import json
import sys
import uuid

from flotilla_client import AuthenticatedClient
from flotilla_client.api.todo import create_todo, get_todo, list_todos
from flotilla_client.models import Problem, Todo


def events(response):
    """The events of a stream: name, id and data."""
    event = {}
    for line in response.iter_lines():
        if not line:
            if "data" in event:
                yield event
            event = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            event[name] = value


def main(url: str, key: str) -> None:
    client = AuthenticatedClient(base_url=url, token=key)
    label = f"walk-{uuid.uuid4()}"
    with client.get_httpx_client().stream("GET", "/v1/todos:watch", timeout=30) as watched:
        arriving = events(watched)
        # The stream says at once where it is: from here on nothing is missed.
        first = next(arriving)
        assert first["event"] == "heartbeat", first

        todo = Todo(title="Splice the mooring line", labels=[label])
        written = create_todo.sync(client=client, body=todo, idempotency_key=str(uuid.uuid4()))
        assert isinstance(written, Todo), written

        found = list_todos.sync(client=client, filter_=f'labels:"{label}" AND status = OPEN', order_by="dueTime", page_size=10)
        assert [each.id for each in found.todos] == [written.id], found

        for event in arriving:
            arrived = json.loads(event["data"]).get("todo", {})
            if arrived.get("id") == str(written.id):
                break

    missing = get_todo.sync(client=client, id=uuid.uuid4())
    assert isinstance(missing, Problem) and missing.code == "TODO_NOT_FOUND", missing
    print(f"wrote, listed and heard {written.id}")


if __name__ == "__main__":
    main(*sys.argv[1:])
