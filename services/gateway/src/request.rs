//! Takes a request in: its body, bounded in size and time, and the headers that mean something here.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use futures::StreamExt as _;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HOST, IF_MATCH};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};
use service::idempotency;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::problem::Problem;

/// The largest request body.
const MAX_BODY_BYTES: usize = 1024 * 1024;
/// How much of a larger one is read before the connection is given up.
const MAX_DRAINED_BYTES: usize = 16 * MAX_BODY_BYTES;
/// How long a request body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(15);
/// How much of all bodies together may be here.
const MAX_BODIES_BYTES: usize = 128 * MAX_BODY_BYTES;
/// Room is taken for so many bytes at once.
const ROOM_BYTES: usize = 16 * 1024;
/// A key and its quotes.
const MAX_KEY_BYTES: usize = 257;
/// The header of idempotency keys.
pub static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static(idempotency::METADATA);

/// One host, which every HTTP/1.1 request names (RFC 9112, 3.2).
///
/// # Errors
/// 400 when it names none or several.
pub fn host(request: &Request) -> Result<(), Problem> {
    let named = request.headers().get_all(HOST).iter().count();
    let wrong = named > 1 || (named == 0 && request.version() == Version::HTTP_11);
    if wrong { Err(Problem::invalid("an HTTP/1.1 request has one Host header")) } else { Ok(()) }
}

/// The room for bodies, so that many callers together cannot take all memory.
pub struct Bodies(Semaphore);

/// A body that has arrived; its room is free again when this is dropped.
pub struct Arrived<'a> {
    bytes: Vec<u8>,
    room: Option<SemaphorePermit<'a>>,
}

impl Arrived<'_> {
    /// What it holds.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Bodies {
    /// With nothing in it.
    pub const fn new() -> Self {
        Self::of(MAX_BODIES_BYTES)
    }

    const fn of(bytes: usize) -> Self {
        Self(Semaphore::const_new(bytes / ROOM_BYTES))
    }

    /// Reads a JSON body, or none.
    ///
    /// # Errors
    /// 408 when it takes too long, 413 when it is too large, 415 when it is not declared as JSON, 503 when there is no room.
    pub async fn read(&self, headers: &HeaderMap, body: Body) -> Result<Arrived<'_>, Problem> {
        if headers.get_all(CONTENT_ENCODING).iter().any(|coding| coding != "identity") {
            let detail = "send the body as it is, without a Content-Encoding";
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UNSUPPORTED_MEDIA_TYPE", detail));
        }
        let body = match tokio::time::timeout(BODY_TIMEOUT, self.collect(body)).await {
            Ok(body) => body?,
            Err(_) => {
                return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "REQUEST_TIMEOUT", "the body took too long"));
            }
        };
        let json = |value: &str| {
            let media = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
            media == "application/json" || media == "application/merge-patch+json"
        };
        let mut types = headers.get_all(CONTENT_TYPE).iter().map(|value| value.to_str().unwrap_or_default()).peekable();
        if !body.bytes.is_empty() && (types.peek().is_none() || !types.all(json)) {
            let detail = "send the body as JSON, with the header Content-Type: application/json";
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UNSUPPORTED_MEDIA_TYPE", detail));
        }
        Ok(body)
    }

    /// A body that is too large is read a good deal further, and forgotten: a client that is still sending would not see
    /// the answer.
    async fn collect(&self, body: Body) -> Result<Arrived<'_>, Problem> {
        let mut stream = body.into_data_stream();
        let mut arrived = Arrived { bytes: Vec::new(), room: None };
        let mut total = 0;
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|_| Problem::invalid("the body did not arrive as it was announced"))?;
            total += chunk.len();
            if total <= MAX_BODY_BYTES {
                self.make_room(&mut arrived, total)?;
                arrived.bytes.extend_from_slice(&chunk);
            } else if total > MAX_DRAINED_BYTES {
                break;
            }
        }
        if total > MAX_BODY_BYTES {
            let detail = format!("a request body may have {MAX_BODY_BYTES} bytes at most");
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "TOO_LARGE", detail));
        }
        Ok(arrived)
    }

    fn make_room<'a>(&'a self, arrived: &mut Arrived<'a>, bytes: usize) -> Result<(), Problem> {
        let has = arrived.room.as_ref().map_or(0, SemaphorePermit::num_permits);
        let wants = bytes.div_ceil(ROOM_BYTES);
        if wants > has {
            let more = u32::try_from(wants - has).map_err(|_| Problem::internal())?;
            let room = self.0.try_acquire_many(more).map_err(|_| {
                let detail = "too many bodies are arriving at once: try again";
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", detail).retry_after(1)
            })?;
            match &mut arrived.room {
                Some(had) => had.merge(room),
                none => *none = Some(room),
            }
        }
        Ok(())
    }
}

/// The entity tag of `If-Match`, unquoted (RFC 9110, 13.1.1).
pub fn if_match(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let wrong = || Problem::invalid("If-Match must be one entity tag in quotes, such as \"v3\", or *");
    let mut values = headers.get_all(IF_MATCH).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().map_err(|_| wrong())?.trim();
    if values.next().is_some() {
        return Err(wrong());
    }
    if text == "*" {
        return Ok(Some(text.to_owned()));
    }
    // A weak tag never matches: it goes on as it is, and the service refuses it.
    let tag = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    match tag {
        Some(tag) if !tag.is_empty() && !tag.contains('"') => Ok(Some(tag.to_owned())),
        None if text.starts_with("W/\"") && text.ends_with('"') => Ok(Some(text.to_owned())),
        _ => Err(wrong()),
    }
}

pub fn one_key(headers: &HeaderMap) -> Result<Option<HeaderValue>, Problem> {
    let mut values = headers.get_all(&IDEMPOTENCY_KEY).iter();
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "IDEMPOTENCY_KEY_MALFORMED",
            "send one Idempotency-Key, not several",
        )),
        (Some(value), None) if value.len() > MAX_KEY_BYTES => Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "IDEMPOTENCY_KEY_MALFORMED",
            "Idempotency-Key must be 1 to 255 printable ASCII characters, for example a UUID",
        )),
        (value, None) => Ok(value.cloned()),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::stream;

    use super::*;

    async fn read<'a>(bodies: &'a Bodies, body: impl Into<Body>) -> Result<Arrived<'a>, u16> {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        bodies.read(&headers, body.into()).await.map_err(|problem| problem.status.as_u16())
    }

    #[tokio::test]
    async fn all_bodies_together_have_so_much_room_and_give_it_back() {
        let bodies = Bodies::of(3 * ROOM_BYTES);
        let some = read(&bodies, "x".repeat(2 * ROOM_BYTES)).await.unwrap();
        assert_eq!(some.bytes().len(), 2 * ROOM_BYTES);
        assert_eq!(read(&bodies, "x".repeat(ROOM_BYTES + 1)).await.err(), Some(503));
        drop(some);
        read(&bodies, "x".repeat(3 * ROOM_BYTES)).await.unwrap();
        read(&bodies, "").await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_end_is_given_up_and_so_is_one_that_is_too_large() {
        let bodies = Bodies::new();
        let slow = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        assert_eq!(read(&bodies, slow).await.err(), Some(408));
        let endless = stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 4_096])));
        assert_eq!(read(&bodies, Body::from_stream(endless)).await.err(), Some(413));
        assert_eq!(bodies.0.available_permits(), MAX_BODIES_BYTES / ROOM_BYTES);
    }
}
