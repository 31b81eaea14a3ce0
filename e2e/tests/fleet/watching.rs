//! What a browser or a program hears over `GET /v1/todos:watch`.

use std::time::Duration;

use e2e::{Answer, Caller};
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::access::{member, program};
use crate::with_fleet;

/// A stream of server-sent events.
struct Events {
    response: Response,
    read: String,
}

/// An event: its name, id and data.
#[derive(Debug, Clone)]
struct Event {
    name: String,
    id: String,
    data: Value,
}

impl Events {
    async fn of(caller: &Caller, last_event_id: Option<&str>) -> Self {
        let mut request = caller.request(Method::GET, "/v1/todos:watch");
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        let response = request.send().await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["content-type"]),
            (200, &"text/event-stream".parse().unwrap())
        );
        Self { response, read: String::new() }
    }

    /// The next event; none at the end of the stream.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some((event, rest)) = self.read.split_once("\n\n") {
                let field = |name: &str| {
                    let mut values = event.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                    values.next().unwrap_or_default().to_owned()
                };
                let (name, id, data) = (field("event"), field("id"), field("data"));
                self.read = rest.to_owned();
                if name.is_empty() {
                    continue;
                }
                return Some(Event { name, id, data: serde_json::from_str(&data).unwrap() });
            }
            let chunk = tokio::time::timeout(testkit::PATIENCE, self.response.chunk()).await;
            let chunk = chunk.expect("a stream says that it lives").unwrap()?;
            self.read.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    /// The next that happens.
    async fn happens(&mut self) -> Event {
        loop {
            let event = self.next().await.expect("it goes on");
            if event.name != "heartbeat" {
                return event;
            }
        }
    }
}

#[test]
fn a_key_hears_each_change_over_http_and_goes_on_where_it_was_cut_off() {
    with_fleet(|fleet, _| async {
        let ann = fleet.person("watch-ann").await;
        ann.sign_up("watching").await;
        let (report, ..) = program(&ann, &["todo:read"]).await;
        let mut events = Events::of(&report, None).await;
        assert_eq!(events.next().await.unwrap().name, "heartbeat", "it says at once where it is");
        let todo = ann.create(json!({"title": "Splice the line", "notes": "twice\nand whip it"})).await;
        let heard = events.happens().await;
        assert_eq!((heard.name.as_str(), &heard.data["todo"]), ("todo", &todo));
        drop(events);

        let path = format!("/v1/todos/{}", todo["id"].as_str().unwrap());
        let changed = ann.send(Method::PATCH, &path, Some(json!({"title": "Splice both"}))).await.body;
        assert_eq!(ann.send(Method::DELETE, &path, None).await.status, 200);
        let mut events = Events::of(&report, Some(&heard.id)).await;
        assert_eq!(events.happens().await.data["todo"], changed);
        let deleted = events.happens().await;
        let wanted = json!({"id": todo["id"], "version": 3});
        assert_eq!((deleted.name.as_str(), &deleted.data["deleted"]), ("deleted", &wanted));

        // The id is of this tenant alone.
        let eve = fleet.person("watch-eve").await;
        eve.sign_up("watching-other").await;
        let stolen = eve.request(Method::GET, "/v1/todos:watch").header("last-event-id", &heard.id);
        let stolen = Answer::of(stolen.send().await.unwrap()).await;
        assert_eq!((stolen.status, stolen.code()), (400, "INVALID_ARGUMENT"), "{stolen:?}");
        assert_eq!(stolen.body["errors"][0]["pointer"], "#/lastEventId");
    });
}

#[test]
fn a_stream_ends_when_its_reader_is_no_member_any_more() {
    with_fleet(|fleet, _| async {
        let ann = fleet.person("watch-ends-ann").await;
        ann.sign_up("watching-ends").await;
        let (bob, path) = member(fleet, &ann, "watch-ends-bob", "MEMBER").await;
        let mut events = Events::of(&bob, None).await;
        assert_eq!(ann.send(Method::DELETE, &path, None).await.status, 200);
        let ended = tokio::time::timeout(Duration::from_secs(30), async {
            let mut last = None;
            while let Some(event) = events.next().await {
                last = Some(event);
            }
            last.unwrap()
        });
        let ended = ended.await.unwrap();
        assert_eq!((ended.name.as_str(), &ended.data["code"]), ("problem", &json!("TOKEN_REVOKED")));
    });
}
