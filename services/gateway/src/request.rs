//! Receives a request: its body, bounded in size and time, and the headers that matter here.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use futures::StreamExt as _;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HOST, IF_MATCH, IF_NONE_MATCH};
use http::request::Parts as Head;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use service::server::Peer;
use service::{Failure, idempotency};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::problem::Problem;
use crate::routes::{MAX_BODY_BYTES, Takes};

/// How much of a larger body is read before the connection is given up.
const MAX_DRAINED_BYTES: usize = 16 * MAX_BODY_BYTES;
/// How long a request body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(15);
/// The most memory for all bodies together.
const MAX_BODIES_BYTES: usize = 128 * MAX_BODY_BYTES;
/// The unit in which memory is reserved.
const ROOM_BYTES: usize = 16 * 1024;
/// The most that the headers may say which a method gets: its service refuses metadata of more than 16 KiB as a whole.
const MAX_SAID_BYTES: usize = 8 * 1024;
/// The longest key, with its quotes.
const MAX_KEY_BYTES: usize = 257;
/// The header of idempotency keys.
pub static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static(idempotency::METADATA);

/// Checks that an HTTP/1.1 request names one host (RFC 9112, 3.2).
///
/// # Errors
/// 400 when it names none or several.
pub fn host(request: &Request) -> Result<(), Problem> {
    let named = request.headers().get_all(HOST).iter().count();
    let wrong = named > 1 || (named == 0 && request.version() == Version::HTTP_11);
    if wrong { Err(Problem::invalid("an HTTP/1.1 request has one Host header")) } else { Ok(()) }
}

/// Where proxies put the addresses of their clients, the newest last.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address of the client: that at the other end of the connection or, behind proxies of the fleet's own, the one that the
/// outermost of them has seen. What stands before that in the header is the client's own claim.
///
/// # Errors
/// INTERNAL when the request did not come through the server.
pub fn client(head: &Head, proxies: usize) -> Result<IpAddr, Failure> {
    let Peer(peer) = head.extensions.get().copied().context("a request without its peer").map_err(Failure::internal)?;
    let Some(outermost) = proxies.checked_sub(1) else { return Ok(peer) };
    let values = head.headers.get_all(FORWARDED_FOR).iter().rev();
    let mut addresses = values.flat_map(|value| value.to_str().unwrap_or_default().rsplit(',')).map(str::trim);
    let seen = addresses
        .nth(outermost)
        .and_then(|text| text.parse().ok().or_else(|| text.parse().ok().map(|address: SocketAddr| address.ip())));
    // A request that came around the proxies.
    Ok(seen.unwrap_or(peer))
}

/// The memory for bodies: many callers together cannot take all of it.
pub struct Bodies(Semaphore);

/// A body that has arrived; dropping it frees its memory.
pub struct Arrived<'a> {
    bytes: Vec<u8>,
    room: Option<SemaphorePermit<'a>>,
}

impl Arrived<'_> {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its bytes, whose memory it goes on to stand for.
    pub fn take(&mut self) -> Bytes {
        std::mem::take(&mut self.bytes).into()
    }
}

impl Bodies {
    /// With all memory free.
    pub const fn new() -> Self {
        Self::of(MAX_BODIES_BYTES)
    }

    const fn of(bytes: usize) -> Self {
        Self(Semaphore::const_new(bytes / ROOM_BYTES))
    }

    /// Reads a body of this media with so many bytes at most, or none.
    ///
    /// # Errors
    /// 408 when it takes too long, 413 when it is too large, 415 when it is not declared as such, 503 when there is no memory for it.
    pub async fn read(
        &self,
        headers: &HeaderMap,
        body: Body,
        (takes, most): (&Takes, usize),
    ) -> Result<Arrived<'_>, Problem> {
        if headers.get_all(CONTENT_ENCODING).iter().any(|coding| coding != "identity") {
            let detail = "send the body as it is, without a Content-Encoding";
            let mut problem = Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UNSUPPORTED_MEDIA_TYPE", detail);
            // What would be taken (RFC 9110, 12.5.3).
            problem.headers.push((ACCEPT_ENCODING, HeaderValue::from_static("identity")));
            return Err(problem);
        }
        let body = self.collect(body, most).await?;
        let fits = |value: &str| {
            let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
            takes.names().contains(&essence.as_str())
        };
        let mut types = headers.get_all(CONTENT_TYPE).iter().map(|value| value.to_str().unwrap_or_default()).peekable();
        if let Some(usual) = takes.names().first()
            && !body.bytes.is_empty()
            && (types.peek().is_none() || !types.all(fits))
        {
            let name = takes.name();
            let detail = format!("send the body as {name}, with the header Content-Type: {usual}");
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UNSUPPORTED_MEDIA_TYPE", detail));
        }
        Ok(body)
    }

    /// Reads a body of so many bytes at most, whatever it is.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn collect(&self, body: Body, most: usize) -> Result<Arrived<'_>, Problem> {
        let late = || Problem::new(StatusCode::REQUEST_TIMEOUT, "REQUEST_TIMEOUT", "the body took too long");
        tokio::time::timeout(BODY_TIMEOUT, self.arrive(body, most)).await.unwrap_or_else(|_| Err(late()))
    }

    /// Reads a body that is too large a good deal further, and discards it: a client that is still sending would not see
    /// the answer.
    async fn arrive(&self, body: Body, most: usize) -> Result<Arrived<'_>, Problem> {
        let mut stream = body.into_data_stream();
        let mut arrived = Arrived { bytes: Vec::new(), room: None };
        let mut total = 0;
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|_| Problem::invalid("the body did not arrive as it was announced"))?;
            total += chunk.len();
            if total <= most {
                self.make_room(&mut arrived, total)?;
                arrived.bytes.extend_from_slice(&chunk);
            } else if total > MAX_DRAINED_BYTES {
                break;
            }
        }
        if total > most {
            let detail = format!("a request body may have {most} bytes at most");
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

/// What a request requires of the resource's entity tag (RFC 9110, 13.1).
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// `If-Match`: one of these, compared strongly.
    matches: Option<Tags>,
    /// `If-None-Match`: none of these, compared weakly.
    none_matches: Option<Tags>,
}

/// The value of `If-Match` or `If-None-Match`.
#[derive(Debug, PartialEq, Eq)]
enum Tags {
    /// `*`
    Any,
    /// Whether each tag is weak, and the text in its quotes.
    Listed(Vec<(bool, String)>),
}

/// No todo has this tag: a change that requires it is never made.
const NO_TAG: &str = "-";

impl Conditions {
    /// The conditions of a request.
    ///
    /// # Errors
    /// 400 when they cannot be read, or a change has a condition for reading.
    pub fn of(method: &Method, headers: &HeaderMap) -> Result<Self, Problem> {
        let conditions = Self { matches: tags(headers, &IF_MATCH)?, none_matches: tags(headers, &IF_NONE_MATCH)? };
        let reads = [Method::GET, Method::HEAD].contains(method);
        match conditions.none_matches {
            Some(Tags::Listed(_)) if !reads => Err(Problem::invalid(
                "If-None-Match with entity tags is for GET and HEAD: to change one version, send If-Match",
            )),
            _ => Ok(conditions),
        }
    }

    /// For a change: the entity tags, separated by commas; the resource must have one of them.
    pub fn etag(&self) -> Option<String> {
        // Only an existing resource can be changed: for a missing one the answer is 404 anyway.
        if self.none_matches.is_some() {
            return Some(NO_TAG.to_owned());
        }
        match self.matches.as_ref()? {
            Tags::Any => Some("*".to_owned()),
            Tags::Listed(tags) => {
                // Weak tags never match. Nor do tags that a service would read as something else: no resource of ours has one.
                let other = |tag: &str| tag.is_empty() || tag == "*" || tag.contains(',') || tag.trim() != tag;
                let strong: Vec<&str> =
                    tags.iter().filter(|(weak, tag)| !weak && !other(tag)).map(|(_, tag)| tag.as_str()).collect();
                Some(if strong.is_empty() { NO_TAG.to_owned() } else { strong.join(",") })
            }
        }
    }

    /// For a request that creates in a collection: there is no entity tag to compare.
    ///
    /// # Errors
    /// 412 when the condition cannot be met.
    pub fn of_collection(&self) -> Result<(), Problem> {
        let any = |tags: &Option<Tags>| matches!(tags, None | Some(Tags::Any));
        if any(&self.matches) && self.none_matches.is_none() {
            return Ok(());
        }
        let detail = "what is made has no entity tag yet: send this request without a condition";
        Err(Problem::new(StatusCode::PRECONDITION_FAILED, "ETAG_MISMATCH", detail))
    }

    /// For a read: whether the caller has the resource already.
    ///
    /// # Errors
    /// 412 when the resource has none of the tags of `If-Match`.
    pub fn is_known(&self, etag: Option<&str>) -> Result<bool, Problem> {
        let fits = |tags: &Tags, weakly: bool| match tags {
            Tags::Any => true,
            Tags::Listed(tags) => tags.iter().any(|(weak, tag)| (weakly || !weak) && Some(tag.as_str()) == etag),
        };
        if self.matches.as_ref().is_some_and(|tags| !fits(tags, false)) {
            let detail = "the resource has none of the entity tags of If-Match";
            return Err(Problem::new(StatusCode::PRECONDITION_FAILED, "ETAG_MISMATCH", detail));
        }
        Ok(self.none_matches.as_ref().is_some_and(|tags| etag.is_some() && fits(tags, true)))
    }
}

/// The entity tags of a header, on one line or several.
fn tags(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Tags>, Problem> {
    let wrong = || Problem::invalid(format!("{name} must be entity tags in quotes, such as \"v3\", or *"));
    let mut listed = Vec::new();
    let mut any = false;
    for value in headers.get_all(name) {
        let mut rest = value.to_str().map_err(|_| wrong())?.trim();
        if rest == "*" {
            any = true;
            continue;
        }
        loop {
            // A list may have empty elements (RFC 9110, 5.6.1.2).
            rest = rest.trim_start_matches([',', ' ', '\t']);
            if rest.is_empty() {
                break;
            }
            let (weak, quoted) = rest.strip_prefix("W/").map_or((false, rest), |rest| (true, rest));
            let (tag, after) = quoted.strip_prefix('"').and_then(|text| text.split_once('"')).ok_or_else(wrong)?;
            listed.push((weak, tag.to_owned()));
            rest = after.trim_start();
            if !rest.is_empty() && !rest.starts_with(',') {
                return Err(wrong());
            }
        }
    }
    match (any, listed.is_empty()) {
        (true, true) => Ok(Some(Tags::Any)),
        (true, false) => Err(wrong()),
        (false, true) if headers.contains_key(name) => Err(wrong()),
        (false, true) => Ok(None),
        (false, false) => Ok(Some(Tags::Listed(listed))),
    }
}

/// Bounds the headers that a method gets as metadata.
///
/// # Errors
/// 431 when they are too large.
pub fn said(headers: &HeaderMap, names: &[HeaderName]) -> Result<(), Problem> {
    let values = names.iter().flat_map(|name| headers.get_all(name).iter().map(move |value| (name, value)));
    // As HTTP/2 counts them (RFC 9113, 10.5.1).
    let bytes: usize = values.map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
    if bytes <= MAX_SAID_BYTES {
        return Ok(());
    }
    let named = names.iter().map(HeaderName::as_str).collect::<Vec<_>>().join(", ");
    let detail = format!("the headers {named} may have {MAX_SAID_BYTES} bytes at most together");
    Err(Problem::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "HEADERS_TOO_LARGE", detail))
}

/// The idempotency key of a request, if it has one.
///
/// # Errors
/// 400 when there are several, or it is too long.
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
    use futures::stream;

    use super::*;

    async fn read<'a>(bodies: &'a Bodies, body: impl Into<Body>) -> Result<Arrived<'a>, u16> {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        bodies
            .read(&headers, body.into(), (&Takes::Json, MAX_BODY_BYTES))
            .await
            .map_err(|problem| problem.status.as_u16())
    }

    #[test]
    fn the_client_is_whom_the_outermost_proxy_of_ours_has_seen() {
        let of = |proxies: usize, forwarded: &[&str]| {
            let (mut head, ()) = http::Request::new(()).into_parts();
            head.extensions.insert(Peer([10, 0, 0, 1].into()));
            head.headers = forwarded.iter().map(|value| (FORWARDED_FOR, value.parse().unwrap())).collect();
            client(&head, proxies).unwrap().to_string()
        };
        for (proxies, forwarded, wanted) in [
            (0, &["192.0.2.1"][..], "10.0.0.1"),
            (1, &["192.0.2.1"][..], "192.0.2.1"),
            (1, &["1.1.1.1, 192.0.2.1"][..], "192.0.2.1"),
            (1, &["1.1.1.1", "192.0.2.1:4711"][..], "192.0.2.1"),
            (2, &["1.1.1.1,[2001:db8::1]:80", "10.0.0.2"][..], "2001:db8::1"),
            (2, &["192.0.2.1"][..], "10.0.0.1"),
            (1, &["unknown"][..], "10.0.0.1"),
            (1, &[][..], "10.0.0.1"),
        ] {
            assert_eq!(of(proxies, forwarded), wanted, "{proxies} {forwarded:?}");
        }
    }

    #[test]
    fn conditions_are_read_as_http_has_them() {
        let of = |method: Method, headers: &[(HeaderName, &str)]| {
            let headers = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap()));
            Conditions::of(&method, &headers.collect())
        };
        let change =
            |headers: &[(HeaderName, &str)]| of(Method::PATCH, headers).map(|all| all.etag()).map_err(|p| p.status);
        for (headers, wanted) in [
            (&[][..], Ok(None)),
            (&[(IF_MATCH, "\"v1\"")][..], Ok(Some("v1"))),
            (&[(IF_MATCH, "*")][..], Ok(Some("*"))),
            (&[(IF_MATCH, "\"zz\", \"v1\"")][..], Ok(Some("zz,v1"))),
            (&[(IF_MATCH, ", \"zz\",,\"v1\" ,")][..], Ok(Some("zz,v1"))),
            (&[(IF_MATCH, ",")][..], Err(StatusCode::BAD_REQUEST)),
            (&[(IF_MATCH, "\"zz\""), (IF_MATCH, "W/\"v2\" , \"v1\"")][..], Ok(Some("zz,v1"))),
            (&[(IF_MATCH, "W/\"v1\"")][..], Ok(Some("-"))),
            (&[(IF_MATCH, "\"\"")][..], Ok(Some("-"))),
            (&[(IF_MATCH, "\"*\"")][..], Ok(Some("-"))),
            (&[(IF_MATCH, "\"v0,v1\", \" v1\"")][..], Ok(Some("-"))),
            (&[(IF_NONE_MATCH, "*")][..], Ok(Some("-"))),
            (&[(IF_MATCH, "v1")][..], Err(StatusCode::BAD_REQUEST)),
            (&[(IF_MATCH, "")][..], Err(StatusCode::BAD_REQUEST)),
            (&[(IF_MATCH, "\"v1")][..], Err(StatusCode::BAD_REQUEST)),
            (&[(IF_MATCH, "\"v1\" \"v2\"")][..], Err(StatusCode::BAD_REQUEST)),
            (&[(IF_MATCH, "*"), (IF_MATCH, "\"v1\"")][..], Err(StatusCode::BAD_REQUEST)),
            (&[(IF_NONE_MATCH, "\"v1\"")][..], Err(StatusCode::BAD_REQUEST)),
        ] {
            assert_eq!(change(headers), wanted.map(|tag| tag.map(ToOwned::to_owned)), "{headers:?}");
        }
        let read = |headers: &[(HeaderName, &str)]| {
            of(Method::GET, headers).unwrap().is_known(Some("v2")).map_err(|problem| problem.status.as_u16())
        };
        for (headers, wanted) in [
            (&[][..], Ok(false)),
            (&[(IF_NONE_MATCH, "\"zz\"")][..], Ok(false)),
            (&[(IF_NONE_MATCH, "\"zz\""), (IF_NONE_MATCH, "W/\"v2\"")][..], Ok(true)),
            (&[(IF_NONE_MATCH, "*")][..], Ok(true)),
            (&[(IF_MATCH, "\"zz\"")][..], Err(412)),
            (&[(IF_MATCH, "W/\"v2\"")][..], Err(412)),
            (&[(IF_MATCH, "\"zz\", \"v2\"")][..], Ok(false)),
            (&[(IF_MATCH, "\"v2\""), (IF_NONE_MATCH, "\"v2\"")][..], Ok(true)),
        ] {
            assert_eq!(read(headers), wanted, "{headers:?}");
        }
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
