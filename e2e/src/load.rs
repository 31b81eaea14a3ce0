//! Callers who write, read, search and turn pages while a test changes something beneath them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use reqwest::Method;
use serde_json::json;
use tokio::task::JoinSet;

use crate::{Caller, Fleet};

/// After how many rounds a caller who keeps its connections has a new token.
const ROUNDS: usize = 20;

/// Four callers, of whom every request succeeds.
pub struct Load {
    state: Arc<State>,
    callers: JoinSet<()>,
}

#[derive(Default)]
struct State {
    ends: AtomicBool,
    written: AtomicUsize,
}

impl Load {
    /// Begins. Two keep their connections, two have new ones, and a new token, for each round.
    #[must_use]
    pub fn start(fleet: &Arc<Fleet>) -> Self {
        let (state, mut callers) = (Arc::new(State::default()), JoinSet::new());
        for (user, keeps) in [("ann", true), ("ben", true), ("cid", false), ("dee", false)] {
            let (fleet, state) = (Arc::clone(fleet), Arc::clone(&state));
            callers.spawn(async move {
                let mut caller = fleet.caller("acme", user).await;
                for round in 1.. {
                    if state.ends.load(Ordering::SeqCst) {
                        return;
                    }
                    round_of(&caller).await;
                    state.written.fetch_add(1, Ordering::SeqCst);
                    if !keeps {
                        caller = fleet.caller("acme", user).await;
                    } else if round % ROUNDS == 0 {
                        caller = caller.with_the_token_of(&fleet.caller("acme", user).await);
                    }
                }
            });
        }
        Self { state, callers }
    }

    /// Waits until twenty more todos were written.
    pub async fn goes_on(&self) {
        let so_far = self.state.written.load(Ordering::SeqCst);
        testkit::until("the load goes on", || async { self.state.written.load(Ordering::SeqCst) > so_far + ROUNDS })
            .await;
    }

    /// Ends; returns how many todos were written.
    ///
    /// # Panics
    /// A request has failed.
    pub async fn end(mut self) -> usize {
        self.state.ends.store(true, Ordering::SeqCst);
        while let Some(caller) = self.callers.join_next().await {
            caller.unwrap();
        }
        self.state.written.load(Ordering::SeqCst)
    }
}

async fn round_of(caller: &Caller) {
    let todo = caller.create(json!({"title": "Tar the hull"})).await;
    let get = async |path: &str| {
        let answer = caller.send(Method::GET, path, None).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        answer.body
    };
    get(&format!("/v1/todos/{}", todo["id"].as_str().unwrap())).await;
    for list in ["/v1/todos?pageSize=1", "/v1/todos:search?query=hull&pageSize=1"] {
        if let Some(next) = get(list).await["nextPageToken"].as_str().filter(|next| !next.is_empty()) {
            get(&format!("{list}&pageToken={next}")).await;
        }
    }
}
