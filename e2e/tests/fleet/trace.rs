//! One write is one trace, from the edge to the index: seen by a real OTLP receiver.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use reqwest::Method;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::with_fleet;

/// Spans by the service that sent them. Clones are the same receiver.
#[derive(Clone, Default)]
pub struct Received(Arc<Mutex<Vec<(String, Span)>>>);

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut spans = self.0.lock().unwrap();
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.unwrap_or_default().attributes;
            let name = attributes.into_iter().find(|attribute| attribute.key == "service.name");
            let name = name.and_then(|attribute| attribute.value?.value).map(|value| format!("{value:?}"));
            let service = name.unwrap_or_default().split('"').nth(1).unwrap_or_default().to_owned();
            let sent = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            spans.extend(sent.map(|span| (service.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Starts the receiver; its address.
pub async fn receive() -> (String, Received) {
    let received = Received::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(received.clone()));
    let serving = server.serve_with_incoming(TcpListenerStream::new(listener));
    tokio::runtime::Handle::current().spawn(serving);
    (format!("http://{address}"), received)
}

impl Received {
    /// The spans of a trace, and those of other traces that link to one of them.
    fn of(&self, trace_id: &str) -> Vec<(String, Span)> {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let spans = self.0.lock().unwrap();
        let belongs = |span: &Span| {
            hex(&span.trace_id) == trace_id || span.links.iter().any(|link| hex(&link.trace_id) == trace_id)
        };
        // The spans of a linked trace belong to it as well.
        let linked: BTreeSet<_> =
            spans.iter().filter(|(_, span)| belongs(span)).map(|(_, span)| span.trace_id.clone()).collect();
        spans.iter().filter(|(_, span)| linked.contains(&span.trace_id)).cloned().collect()
    }
}

#[test]
fn one_write_is_one_trace_from_the_edge_to_the_index() {
    with_fleet(|fleet, received| async {
        let ann = fleet.caller("trace", "ann").await;
        let parent = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let request = ann
            .request(Method::POST, "/v1/todos")
            .header("traceparent", format!("00-{}-{}-01", parent.0, parent.1))
            .json(&json!({"title": "traced"}));
        let answer = e2e::Answer::of(request.send().await.unwrap()).await;
        assert_eq!((answer.status, answer.header("trace-id")), (200, parent.0), "the caller's trace goes on");
        let wanted = [
            ("gateway", "POST /v1/todos"),
            ("gateway", "flotilla.todo.v1.TodoService/CreateTodo"),
            ("todo", "flotilla.todo.v1.TodoService/CreateTodo"),
            ("todo", "begin"),
            ("todo", "insert"),
            ("todo", "commit"),
            ("todo", "send evt.todo.created.v1"),
            ("search-projector", "process evt.todo.>"),
            ("search-projector", "bulk"),
        ];
        testkit::until("all spans have arrived", || async {
            let spans = received.of(parent.0);
            wanted.iter().all(|(service, name)| spans.iter().any(|(from, span)| from == service && span.name == *name))
        })
        .await;
        // Every span's parent is in the trace, or is the caller's.
        let spans = received.of(parent.0);
        let ids: BTreeMap<_, _> = spans.iter().map(|(_, span)| (span.span_id.clone(), &span.name)).collect();
        for (_, span) in spans.iter().filter(|(_, span)| !span.parent_span_id.is_empty()) {
            let caller: Vec<u8> = vec![0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7];
            let known = ids.contains_key(&span.parent_span_id) || span.parent_span_id == caller;
            assert!(known, "{} has a parent that was never sent", span.name);
        }
        // Only then is the outcome of a call known.
        for (service, key, wanted) in [
            ("gateway", "http.response.status_code", Value::IntValue(200)),
            ("todo", "rpc.response.status_code", Value::StringValue("OK".to_owned())),
            ("gateway", "user.id", Value::StringValue("ann".to_owned())),
            ("todo", "flotilla.tenant", Value::StringValue("trace".to_owned())),
            ("search-projector", "tenant", Value::StringValue("trace".to_owned())),
        ] {
            let attributes = spans.iter().filter(|(from, _)| from == service).flat_map(|(_, span)| &span.attributes);
            let ended = attributes.filter(|attribute| attribute.key == key);
            let ended: Vec<_> = ended.filter_map(|attribute| attribute.value.as_ref()?.value.as_ref()).collect();
            assert_eq!(ended, [&wanted], "{service} tells how the call ended");
        }
    });
}
