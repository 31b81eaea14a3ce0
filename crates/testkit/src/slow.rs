//! A proxy to a nats-server that delays requests to JetStream's API, but no messages: as when the API is busy.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;

/// The proxy; dropping this stops it.
pub struct SlowApi {
    /// The address to connect to instead.
    pub port: u16,
    _tasks: JoinSet<()>,
}

impl SlowApi {
    /// Starts one in front of a port of this machine, with this delay for each API request.
    ///
    /// # Panics
    /// No port is free.
    pub async fn to(upstream: u16, wait: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", upstream)).await else { continue };
                let ((mut answers, to_server), (from_client, mut to_client)) =
                    (server.into_split(), client.into_split());
                connections.spawn(async move {
                    tokio::io::copy(&mut answers, &mut to_client).await.ok();
                });
                let (send, frames) = mpsc::unbounded_channel();
                connections.spawn(forward(to_server, frames));
                connections.spawn(async move {
                    read(BufReader::new(from_client), wait, send).await.ok();
                });
            }
        });
        Self { port, _tasks: tasks }
    }
}

async fn forward(mut server: OwnedWriteHalf, mut frames: UnboundedReceiver<Vec<u8>>) {
    while let Some(frame) = frames.recv().await {
        if server.write_all(&frame).await.is_err() {
            return;
        }
    }
}

/// Reads what a client sends, a line and its payload at a time: `PUB subject [reply] size`, `HPUB` the same.
async fn read(
    mut client: BufReader<OwnedReadHalf>,
    wait: Duration,
    send: UnboundedSender<Vec<u8>>,
) -> Result<(), std::io::Error> {
    let mut late = JoinSet::new();
    loop {
        let mut frame = Vec::new();
        if client.read_until(b'\n', &mut frame).await? == 0 {
            return Ok(());
        }
        let line = String::from_utf8_lossy(&frame).into_owned();
        let words: Vec<&str> = line.split_whitespace().collect();
        if let (Some(&"PUB" | &"HPUB"), Some(size)) = (words.first(), words.last()) {
            let size: usize = size.parse().map_err(std::io::Error::other)?;
            let mut payload = vec![0; size + 2];
            client.read_exact(&mut payload).await?;
            frame.extend(payload);
        }
        // A pull is not delayed: messages answer it.
        let asks =
            words.get(1).is_some_and(|subject| subject.starts_with("$JS.API.") && !subject.contains(".MSG.NEXT."));
        if asks {
            let send = send.clone();
            late.spawn(async move {
                tokio::time::sleep(wait).await;
                send.send(frame).ok();
            });
        } else if send.send(frame).is_err() {
            return Ok(());
        }
    }
}
