"""Prints a tenant's todo events and validates each against its schema.

    python docs/consume_events.py .flotilla/secrets/nats-observer.json acme [how many]
"""
import asyncio, json, pathlib, sys
import jsonschema, nats

SCHEMAS = pathlib.Path(__file__).parent.parent / "schemas"

async def main(login_file, tenant, count="0"):
    login = json.loads(pathlib.Path(login_file).read_text())
    client = await nats.connect(login["url"])
    events = await client.jetstream().pull_subscribe(f"evt.todo.*.*.{tenant}", stream="EVENTS_TODO")
    seen = 0
    while not int(count) or seen < int(count):
        for message in await events.fetch(1, timeout=30):
            event = json.loads(message.data)
            jsonschema.validate(event, json.loads((SCHEMAS / f"{event['type']}.json").read_text()))
            print(event["type"], event["subject"], int(event["sequence"]), event["data"]["todo"]["title"], flush=True)
            await message.ack()
            seen += 1
    await client.close()

asyncio.run(main(*sys.argv[1:]))
