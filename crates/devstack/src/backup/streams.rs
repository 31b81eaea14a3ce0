//! JetStream's part: each stream with its durable consumers, in the server's own form, encrypted as it comes. A file is a line
//! of JSON (the stream's configuration and state), then what the server sent.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use async_nats::jetstream::{self, stream};
use async_nats::{Client, Subject};
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

use super::age::{self, Key};
use super::repository::{Repository, secrets};
use super::sets::{MANIFEST, Saved, Sets, StreamSet};
use crate::nats::{administration, connect, credentials_file};
use crate::stack_dir::{self, StackDir, sync_file};
use crate::supervisor::now;

/// How long the server may take for the next part.
const PATIENCE: Duration = Duration::from_secs(30);
/// What it sends at once.
const CHUNK: usize = 128 << 10;

impl Repository {
    /// Saves every stream of every owner as a new set, and removes the sets that no base backup needs any more.
    ///
    /// # Errors
    /// NATS does not answer, or a file cannot be written. What was begun is no set.
    pub async fn save(&self, home: &StackDir, key: &Key, address: &str) -> Result<StreamSet, anyhow::Error> {
        let began = now();
        let label = began.format("%Y%m%d-%H%M%S%.3f").to_string();
        let all = self.path("streams");
        // Of one that was killed: its place may be what this one lacks.
        self.remove_parts()?;
        let part = all.join(format!("{label}.part"));
        std::fs::create_dir_all(&part).with_context(|| format!("making {}", part.display()))?;
        stack_dir::private(&all)?;
        let saved = self.save_into(home, address, key, &part).await;
        let streams = match saved {
            Ok(streams) => streams,
            Err(error) => {
                std::fs::remove_dir_all(&part).ok();
                return Err(error);
            }
        };
        let set = StreamSet { label, began, ended: now(), streams, secrets: secrets(home)? };
        sync_file(&part.join(MANIFEST), &serde_json::to_vec_pretty(&set)?)?;
        std::fs::rename(&part, part.with_extension("")).context("finishing the set of streams")?;
        Ok(set)
    }

    async fn save_into(
        &self,
        home: &StackDir,
        address: &str,
        key: &Key,
        folder: &Path,
    ) -> Result<Vec<Saved>, anyhow::Error> {
        let mut saved = Vec::new();
        for owner in fleet::owners() {
            let client = connect(home, address, &credentials_file(home, &administration(&owner))).await?;
            let names: Vec<String> = jetstream::new(client.clone()).stream_names().try_collect().await?;
            for name in names {
                let file = folder.join(format!("{name}.age"));
                let one = save(&client, key, &name, &file).await;
                saved.push(one.with_context(|| format!("saving the stream {name}"))?);
            }
        }
        Ok(saved)
    }

    /// Removes the sets of streams that no base backup needs any more, and what was cut off.
    ///
    /// # Errors
    /// A folder cannot be removed.
    pub fn expire(&self, sets: &Sets) -> Result<usize, anyhow::Error> {
        self.remove(sets.expired().into_iter())
    }

    /// Keeps the newest sets of streams, where nothing is known of base backups; returns how many it has removed.
    ///
    /// # Errors
    /// A folder cannot be removed.
    pub fn keep(&self, newest: usize) -> Result<usize, anyhow::Error> {
        let sets = self.sets()?.streams;
        let expired = &sets[..sets.len().saturating_sub(newest)];
        self.remove(expired.iter())
    }

    fn remove<'a>(&self, expired: impl Iterator<Item = &'a StreamSet>) -> Result<usize, anyhow::Error> {
        let mut removed = 0;
        for set in expired {
            std::fs::remove_dir_all(self.path("streams").join(&set.label))?;
            removed += 1;
        }
        self.remove_parts()?;
        Ok(removed)
    }

    fn remove_parts(&self) -> Result<(), anyhow::Error> {
        let Ok(sets) = std::fs::read_dir(self.path("streams")) else { return Ok(()) };
        for entry in sets {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "part") {
                std::fs::remove_dir_all(path)?;
            }
        }
        Ok(())
    }

    /// Gives a server without streams those of a set.
    ///
    /// # Errors
    /// A file is damaged or of another key, or the server refuses.
    pub async fn load(&self, home: &StackDir, key: &Key, address: &str, set: &StreamSet) -> Result<(), anyhow::Error> {
        for saved in &set.streams {
            let plain = saved.name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
            ensure!(plain, "`{}` is no name of a stream: was the repository tampered with?", saved.name);
            let owner = administration(&fleet::owner(&saved.name));
            let credentials = credentials_file(home, &owner);
            if !credentials.exists() {
                eprintln!("the stream {} is left out: this release has no owner of it", saved.name);
                continue;
            }
            let client = connect(home, address, &credentials).await?;
            let file = self.path("streams").join(&set.label).join(format!("{}.age", saved.name));
            let loaded = load(&client, key, saved, &file).await;
            loaded.with_context(|| format!("restoring the stream {}", saved.name))?;
        }
        Ok(())
    }
}

async fn save(client: &Client, key: &Key, name: &str, file: &Path) -> Result<Saved, anyhow::Error> {
    let inbox = client.new_inbox();
    let mut chunks = client.subscribe(inbox.clone()).await?;
    let wanted = json!({"deliver_subject": inbox, "no_consumers": false, "chunk_size": CHUNK, "jsck": true});
    let answer = request(client, format!("$JS.API.STREAM.SNAPSHOT.{name}"), wanted.to_string().into()).await?;
    let (age, mut output) = key.encrypt(file)?;
    let head = json!({"config": answer["config"], "state": answer["state"]});
    output.write_all(format!("{head}\n").as_bytes()).await?;
    loop {
        let next = tokio::time::timeout(PATIENCE, chunks.next()).await.context("the server sends no more of it")?;
        let chunk = next.context("the connection to NATS has ended")?;
        if chunk.payload.is_empty() {
            let fine = chunk.status.is_none_or(|status| status.as_u16() < 300);
            ensure!(fine, "the server broke off: {:?} {:?}", chunk.status, chunk.description);
            break;
        }
        if let Err(error) = output.write_all(&chunk.payload).await {
            // It knows why: a disk that is full, most likely.
            drop(output);
            age::ended(age, file).await?;
            return Err(error.into());
        }
        if let Some(reply) = chunk.reply {
            client.publish(reply, "".into()).await?;
        }
    }
    drop(output);
    age::ended(age, file).await?;
    let state = &head["state"];
    let number = |field: &str| state[field].as_u64().unwrap_or_default();
    Ok(Saved {
        name: name.to_owned(),
        messages: number("messages"),
        last_sequence: number("last_seq"),
        consumers: usize::try_from(number("consumer_count"))?,
        bytes: std::fs::metadata(file)?.len(),
    })
}

async fn load(client: &Client, key: &Key, saved: &Saved, file: &Path) -> Result<(), anyhow::Error> {
    let (age, input) = key.decrypt(file)?;
    let mut input = BufReader::new(input);
    let mut head = String::new();
    // A line is bounded by what a configuration may hold.
    (&mut input).take(1 << 20).read_line(&mut head).await?;
    if head.is_empty() {
        age::ended(age, file).await?;
        bail!("{} is empty", file.display());
    }
    let wanted: Value = serde_json::from_str(&head).with_context(|| format!("reading {}", file.display()))?;
    let subject = format!("$JS.API.STREAM.RESTORE.{}", saved.name);
    let answer = request(client, subject, wanted.to_string().into()).await?;
    let to = answer["deliver_subject"].as_str().context("the server does not say where to send it")?.to_owned();
    let mut chunk = Vec::with_capacity(CHUNK);
    loop {
        chunk.clear();
        (&mut input).take(CHUNK as u64).read_to_end(&mut chunk).await?;
        if chunk.is_empty() {
            break;
        }
        sent(client, &to, chunk.clone().into()).await?;
    }
    // Before the end is sent: a file that was cut off ends too early, and only age detects it.
    age::ended(age, file).await?;
    let answer = sent(client, &to, "".into()).await?;
    let state: stream::Info = serde_json::from_value(answer).context("reading what the server has restored")?;
    // It has more where somebody wrote meanwhile, and less where messages have grown too old.
    ensure!(
        state.state.last_sequence >= saved.last_sequence,
        "messages up to {} came back, and those up to {} were saved",
        state.state.last_sequence,
        saved.last_sequence
    );
    Ok(())
}

async fn sent(client: &Client, to: &str, chunk: bytes::Bytes) -> Result<Value, anyhow::Error> {
    let answer = tokio::time::timeout(PATIENCE, client.request(Subject::from(to), chunk)).await;
    let answer = answer.context("the server takes no more of it")??;
    if answer.payload.is_empty() {
        return Ok(Value::Null);
    }
    refused(serde_json::from_slice(&answer.payload)?)
}

async fn request(client: &Client, subject: String, body: bytes::Bytes) -> Result<Value, anyhow::Error> {
    let answer = tokio::time::timeout(PATIENCE, client.request(subject, body)).await;
    let answer = answer.context("the server does not answer")??;
    refused(serde_json::from_slice(&answer.payload)?)
}

fn refused(answer: Value) -> Result<Value, anyhow::Error> {
    ensure!(answer["error"].is_null(), "the server refuses: {}", answer["error"]["description"]);
    Ok(answer)
}
