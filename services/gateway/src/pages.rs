//! What the gateway answers by itself, to anybody: the API's description and a page of it, the catalogue of events with their schemas, and the
//! pages of problems and promises.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::extract::Path;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use contracts::events;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, VARY};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use sha2::{Digest as _, Sha256};
use tokio::sync::OnceCell;

use crate::problem::Problem;
use crate::request::Conditions;
use crate::routes::Routes;
use crate::{browsers, openapi};

/// The head of the pages that are written here.
const HEAD: &str = include_str!("../viewer/head.html");
/// The error documentation, which `type` in a problem points to.
const PROBLEMS: &str = include_str!(concat!(env!("OUT_DIR"), "/problems.html"));
/// What clients may rely on, which `Link` of a deprecated method points to.
const PROMISES: &str = include_str!(concat!(env!("OUT_DIR"), "/promises.html"));
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

const READ: &str = "descriptors that can be read";

/// How long a page may be kept, by anybody: a release changes it.
const KEPT: &str = "public, max-age=300";
/// The smallest page that is worth a coding.
const MIN_ZIPPED_BYTES: usize = 1_024;

/// A page: the same for everybody until the next release. It is made when somebody asks for it: few do, and some are large.
struct Page {
    media: &'static str,
    make: Arc<dyn Fn() -> Bytes + Send + Sync>,
    made: OnceCell<Made>,
}

/// What strangers may ask for often.
struct Made {
    text: Bytes,
    zipped: Bytes,
    /// Of the text, and of its coding.
    etags: [String; 2],
}

impl Made {
    fn of(text: Bytes) -> Self {
        let digest = URL_SAFE_NO_PAD.encode(&Sha256::digest(&text)[..12]);
        let zipped_too = format!("{digest}-gzip");
        Self { zipped: zipped(&text), text, etags: [digest, zipped_too] }
    }
}

impl Page {
    fn new<T: Into<Bytes>>(media: &'static str, text: impl Fn() -> T + Send + Sync + 'static) -> Self {
        Self { media, make: Arc::new(move || text().into()), made: OnceCell::new() }
    }

    /// Beside the threads of calls: it takes long.
    async fn made(&self) -> Result<&Made, Problem> {
        let make = || {
            let make = Arc::clone(&self.make);
            tokio::task::spawn_blocking(move || Made::of(make()))
        };
        self.made.get_or_try_init(make).await.map_err(|error| {
            tracing::error!(%error, "a page cannot be made");
            Problem::internal()
        })
    }

    async fn answer(&self, headers: &HeaderMap) -> Response {
        let Made { text, zipped, etags } = match self.made().await {
            Ok(made) => made,
            Err(problem) => return problem.into_response(),
        };
        let zips = text.len() >= MIN_ZIPPED_BYTES && browsers::takes_gzip(headers);
        let etag = &etags[usize::from(zips)];
        let known = match Conditions::of(&Method::GET, headers).and_then(|all| all.is_known(Some(etag))) {
            Ok(known) => known,
            Err(problem) => return problem.into_response(),
        };
        let mut response = match (known, zips) {
            (true, _) => browsers::not_modified(),
            (false, true) => zipped.clone().into_response(),
            (false, false) => text.clone().into_response(),
        };
        let headers = response.headers_mut();
        if !known {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.media));
            headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGES_LOAD));
        }
        headers.insert(CACHE_CONTROL, HeaderValue::from_static(KEPT));
        headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
        if zips && !known {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        headers.extend(HeaderValue::try_from(format!("\"{etag}\"")).map(|etag| (ETAG, etag)));
        response
    }
}

fn zipped(text: &[u8]) -> Bytes {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    // A Vec takes all that is written.
    let _ = gzip.write_all(text);
    gzip.finish().unwrap_or_default().into()
}

/// The pages, with the description of these routes.
#[expect(clippy::expect_used, reason = "our own descriptors, which tests read")]
pub fn router<S: Clone + Send + Sync + 'static>(routes: &'static Routes) -> Router<S> {
    let pages = [
        ("/openapi.json", Page::new(JSON, || openapi::document(&routes.described().expect(READ)).to_string())),
        ("/descriptors.binpb", Page::new(PROTOBUF, || routes.descriptors().expect(READ))),
        ("/docs", Page::new(HTML, || DOCS)),
        ("/docs/docs.js", Page::new("text/javascript", || SCRIPT)),
        ("/docs/swagger-ui-bundle.js", Page::new("text/javascript", || VIEWER)),
        ("/docs/swagger-ui.css", Page::new("text/css", || STYLE)),
        ("/events", Page::new(HTML, catalogue)),
        ("/problems", Page::new(HTML, || format!("{HEAD}{PROBLEMS}{FOOT}"))),
        ("/promises", Page::new(HTML, || format!("{HEAD}{PROMISES}{FOOT}"))),
    ];
    let router = Router::new().route("/schemas/{file}", get(schema));
    pages.into_iter().fold(router, |router, (path, page)| {
        let page = Arc::new(page);
        router.route(path, get(move |headers: HeaderMap| async move { page.answer(&headers).await }))
    })
}

/// A page is read; whoever asks by another method learns so.
pub async fn other_method(method: Method) -> Response {
    let reads = [&Method::GET, &Method::HEAD];
    if method == Method::OPTIONS {
        return browsers::options(&reads);
    }
    Problem::method_not_allowed(&reads).into_response()
}

static SCHEMAS: LazyLock<HashMap<String, Page>> = LazyLock::new(|| {
    let page = |event: events::Type| Page::new("application/schema+json", move || (event.schema)().to_string());
    events::all().map(|event| (format!("{}.json", event.name), page(*event))).collect()
});

/// A JSON Schema, at the path of its `$id`.
async fn schema(Path(file): Path<String>, headers: HeaderMap) -> Response {
    match SCHEMAS.get(file.as_str()) {
        Some(schema) => schema.answer(&headers).await,
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
