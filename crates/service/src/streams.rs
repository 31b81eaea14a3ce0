//! An answer that goes on until its caller may not: it ends with the token, with what identity took away, and with the process.

use std::convert::Infallible;
use std::time::Duration;

use authz::{Caller, TokenError};
use axum::body::{Body, Bytes};
use axum::response::Response;
use futures::stream;
use http::HeaderMap;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::limits::Turn;
use crate::revocations::Revocations;
use crate::server::Lasting;
use crate::{Code, Failure, clock};

/// How often to look whether its caller may go on.
const LOOKS_EVERY: Duration = Duration::from_secs(1);

/// What a stream ends with.
pub(crate) struct Ends {
    /// Who called; none of a public method.
    pub(crate) caller: Option<Caller>,
    pub(crate) revocations: Revocations,
    pub(crate) stop: CancellationToken,
    /// Its place among the open streams.
    #[expect(dead_code, reason = "held")]
    pub(crate) open: Turn,
}

impl Ends {
    fn ended(&self) -> Result<(), Failure> {
        if self.stop.is_cancelled() {
            let what = "the service stops: begin again where this stream ends";
            return Err(Failure::new(Code::Unavailable, "UNAVAILABLE", what).retry_after(LOOKS_EVERY));
        }
        let Some(caller) = &self.caller else { return Ok(()) };
        if clock::now().timestamp() >= caller.expires_unix_seconds {
            return Err(TokenError::Expired.into());
        }
        self.revocations.check(caller).map(drop)
    }
}

struct Going {
    ends: Ends,
    looks: Interval,
    body: Body,
}

/// The answer, with its end.
pub(crate) fn until(response: Response, ends: Ends) -> Response {
    let mut looks = tokio::time::interval(LOOKS_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut head, body) = response.into_parts();
    head.extensions.insert(Lasting::Silent);
    let frames = stream::unfold(Some(Going { ends, looks, body }), |going| async {
        let mut going = going?;
        loop {
            tokio::select! {
                biased;
                () = going.ends.stop.cancelled() => {}
                _ = going.looks.tick() => {}
                frame = going.body.frame() => {
                    return match frame? {
                        Ok(frame) => Some((Ok::<_, Infallible>(frame), Some(going))),
                        // What a service streams cannot fail on the way: it is in memory.
                        Err(error) => Some((Ok(trailers(Failure::internal(error))), None)),
                    };
                }
            }
            if let Err(failure) = going.ends.ended() {
                return Some((Ok(trailers(failure)), None));
            }
        }
    });
    Response::from_parts(head, Body::new(StreamBody::new(frames)))
}

fn trailers(failure: Failure) -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    if let Err(error) = Status::from(failure).add_header(&mut trailers) {
        tracing::error!(%error, "a status cannot be written");
    }
    Frame::trailers(trailers)
}
