"""Prints a tenant's todo events as they come, each validated against its schema. Its durable consumer remembers what was
read: run it again, and it goes on where it ended.

    python docs/consumers/python/consume.py .flotilla/secrets/nats-observer.json acme [how many]
"""
import asyncio, json, pathlib, sys
import jsonschema, nats
from nats.js.api import ConsumerConfig

SCHEMAS = pathlib.Path(__file__).parents[3] / "schemas"

async def main(login_file, tenant, count="0"):
    login = json.loads(pathlib.Path(login_file).read_text())
    client = await nats.connect(login["url"])
    events = await client.jetstream().pull_subscribe(
        f"evt.todo.*.*.{tenant}", durable=f"python-example-{tenant}", stream="EVENTS_TODO", config=ConsumerConfig(ack_wait=30))
    seen = 0
    while not int(count) or seen < int(count):
        try:
            messages = await events.fetch(10, timeout=5)
        except nats.errors.TimeoutError:
            continue
        for message in messages:
            event = json.loads(message.data)
            schema = SCHEMAS / f"{event['type']}.json"
            # A type this program does not know, or one whose newer twin tells the same: passed over.
            if schema.exists() and not (SCHEMAS / f"{event.get('supersededby')}.json").exists():
                jsonschema.validate(event, json.loads(schema.read_text()))
                print(event["type"], event["subject"], int(event["sequence"]), event["data"]["todo"]["title"], flush=True)
                seen += 1
            await message.ack()
    await client.close()

asyncio.run(main(*sys.argv[1:]))
