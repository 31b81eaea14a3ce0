//! Whatever a client sends: paths against templates, and path, query and body as the request of an RPC. Nothing panics, and nothing is worse than a 400.

#![no_main]

use gateway::routes::{Found, Routes};
use gateway::template::Template;
use gateway::transcode::{self, Content, Parts};
use http::{Method, StatusCode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: (u8, &str, &str, &[u8])| {
    let (method, path, query, body) = data;
    // As a template, against itself.
    if let Ok(template) = Template::parse(path) {
        drop(template.matches(path));
    }
    let methods = [Method::GET, Method::POST, Method::PATCH, Method::DELETE, Method::PUT];
    let Some(method) = methods.get(usize::from(method) % methods.len()) else { return };
    let Found::Route(route, fields) = Routes::fleet().find(method, path) else { return };
    let parts = Parts { path: &fields, query, body: Content::Json(body), if_match: None, last_event: None };
    if let Err(problem) = transcode::request(route, parts) {
        assert_eq!(problem.status, StatusCode::BAD_REQUEST, "{}", problem.detail);
    }
});
