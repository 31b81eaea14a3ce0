//! Where the operations port finds the operators' services of its process.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use tonic::Status;
use tower::ServiceExt as _;

/// The services that a process has for operators; none until it has started them. Clones are the same.
#[derive(Clone, Default)]
pub struct Operators(pub(crate) Arc<OnceLock<Router>>);

impl Operators {
    pub(crate) async fn answer(self, request: Request) -> Result<Response, Infallible> {
        let is_grpc = |name: &HeaderValue| name.as_bytes().starts_with(b"application/grpc");
        if !request.headers().get(CONTENT_TYPE).is_some_and(is_grpc) {
            return Ok(StatusCode::NOT_FOUND.into_response());
        }
        match self.0.get() {
            Some(router) => router.clone().oneshot(request).await,
            None => {
                Ok(Status::unavailable("the process has nothing for operators, or has not started it yet").into_http())
            }
        }
    }
}
