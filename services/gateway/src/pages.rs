//! What the gateway answers by itself, to anybody: the API's description and a page of it, the catalogue of events with their schemas, and the
//! pages of problems.

use std::sync::LazyLock;

use axum::Router;
use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use contracts::events;
use http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};

use crate::openapi;
use crate::problem::Problem;
use crate::routes::Routes;

/// The head of the pages that are written here.
const HEAD: &str = include_str!("../viewer/head.html");
/// The error documentation, which `type` in a problem points to.
const PROBLEMS: &str = include_str!(concat!(env!("OUT_DIR"), "/problems.html"));
const VIEWER: &str = include_str!("../viewer/swagger-ui-bundle.js");
const STYLE: &str = include_str!("../viewer/swagger-ui.css");
const DOCS: &str = include_str!("../viewer/docs.html");
const SCRIPT: &str = include_str!("../viewer/docs.js");
/// What these pages load: nothing of another host.
const PAGES_LOAD: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
                          connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const FOOT: &str = "</main></body></html>\n";
const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";
const PROTOBUF: &str = "application/x-protobuf";

static EVENTS: LazyLock<String> = LazyLock::new(catalogue);

/// The pages, with the description of these routes.
pub fn router<S: Clone + Send + Sync + 'static>(routes: &'static Routes) -> Router<S> {
    let described = openapi::document(routes).to_string();
    let page = |media: &'static str, text: &'static str| get(move || async move { answer(media, text) });
    Router::new()
        .route("/openapi.json", get(move || async move { answer(JSON, described) }))
        .route("/descriptors.binpb", get(move || async move { answer(PROTOBUF, routes.descriptors()) }))
        .route("/docs", page(HTML, DOCS))
        .route("/docs/docs.js", page("text/javascript", SCRIPT))
        .route("/docs/swagger-ui-bundle.js", page("text/javascript", VIEWER))
        .route("/docs/swagger-ui.css", page("text/css", STYLE))
        .route("/events", get(|| async { answer(HTML, EVENTS.as_str()) }))
        .route("/schemas/{file}", get(schema))
        .route("/problems", get(|| async { answer(HTML, format!("{HEAD}{PROBLEMS}{FOOT}")) }))
}

fn answer(media: &'static str, text: impl IntoResponse) -> Response {
    let mut response = text.into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGES_LOAD));
    response
}

/// A JSON Schema, at the path of its `$id`.
async fn schema(Path(file): Path<String>) -> Response {
    match file.strip_suffix(".json").and_then(events::schema) {
        Some(schema) => answer("application/schema+json", schema.to_string()),
        None => {
            let detail = "there is no event of this type: /events has all";
            Problem::new(StatusCode::NOT_FOUND, "NO_SUCH_PATH", detail).into_response()
        }
    }
}

/// The page of all events.
fn catalogue() -> String {
    let mut page = format!("{HEAD}{}", include_str!("../viewer/events.html"));
    for event in events::all() {
        let (name, service) = (event.name, event.service);
        let newer = event.superseded_by.map(|newer| {
            format!(
                "<p>Superseded by <a href=\"#{newer}\"><code>{newer}</code></a>: take that one where you know it.</p>"
            )
        });
        let sample = escaped(sample(name));
        page.push_str(&format!(
            "<section id=\"{name}\"><h2><code>{name}</code></h2><p>Published by {service}, owned by {}, on \
             <code>{}</code>. <a href=\"/schemas/{name}.json\">Its schema</a>.</p>{}<details><summary>A sample</summary><pre>{sample}</pre></details></section>\n",
            event.owner,
            contracts::subject::of(name, &contracts::TenantId::example()).replace(".acme", ".TENANT"),
            newer.unwrap_or_default(),
        ));
    }
    page.push_str(FOOT);
    page
}

/// A released sample of an event type.
fn sample(event_type: &str) -> &'static str {
    include!(concat!(env!("OUT_DIR"), "/samples.rs"))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
