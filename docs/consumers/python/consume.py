"""Prints a tenant's todo events as they come, each validated against its schema. Its durable consumer remembers what was
read: run it again, and it goes on where it ended.

    bin/flotilla nats-credentials create --tenant acme --name reporting
    python docs/consumers/python/consume.py .flotilla/secrets/nats/team-acme_reporting.creds nats://127.0.0.1:14222 [how many]
"""
import asyncio, json, pathlib, sys
import jsonschema, nats

SCHEMAS = pathlib.Path(__file__).parents[3] / "schemas"

async def main(credentials, url, count="0"):
    client = await nats.connect(url, user_credentials=credentials)
    # The durable consumer was made with the credentials, and is called as their file is. Nothing is asked of the stream.
    durable = pathlib.Path(credentials).stem
    events = await client.jetstream().pull_subscribe_bind(consumer=durable, stream="EVENTS_TODO")
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
                if todo := event["data"].get("todo"):
                    print(event["type"], event["subject"], int(event["sequence"]), todo["title"], flush=True)
                    seen += 1
            await message.ack()
    await client.close()

asyncio.run(main(*sys.argv[1:]))
