//! A nats-server for one test: with the accounts of the local stack, or with one account for tests without a fleet.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_nats::HeaderMap;
use contracts::events::identity::{
    Actor, ActorKind, Member, MemberAddedV1, MemberId, MemberRemovedV1, Tenant, TenantDeletedV1, TenantStatus,
    TenantStatusChangedV1,
};
use contracts::events::{Aggregate as _, EventType};
use contracts::{Envelope, EventId, UserId, envelope, subject};
use devstack::StackDir;
use devstack::nats::{self, Layout, Nats, Wanted};
use devstack::ports::Ports;
use devstack::process::{Program, signal};
use fleet::Login;
use nix::sys::signal::Signal;
use tokio::net::TcpStream;
use tokio::process::Child;

use crate::{unique, until};

/// A tenant so many seconds after it signed up, at this version.
fn at(seconds: i64, version: i32) -> Tenant {
    let tenant = Tenant::example();
    Tenant { version, update_time: tenant.create_time + chrono::TimeDelta::seconds(seconds), ..tenant }
}

/// This user as a member of that id, so many seconds after another one came.
#[must_use]
pub fn member(id: MemberId, user: &str, seconds: i64) -> Member {
    let member = Member::example();
    let update_time = member.create_time + chrono::TimeDelta::seconds(seconds);
    Member { id, user: user.parse().unwrap(), update_time, ..member }
}

/// The same, changed now.
#[must_use]
pub fn changed_now(id: MemberId, user: &str) -> Member {
    Member { update_time: devstack::supervisor::now(), ..member(id, user, 0) }
}

/// The rows that the outboxes of the services would have, whose events tests publish.
static ROWS: AtomicU64 = AtomicU64::new(1);

/// A running server; dropping this stops and removes it.
pub struct TestNats {
    folder: PathBuf,
    home: StackDir,
    nats: Nats,
    program: Program,
    child: Child,
}

impl TestNats {
    /// Starts one with the accounts of the fleet, its streams and its durable consumers.
    ///
    /// # Panics
    /// It does not start.
    pub async fn start() -> Self {
        Self::with(Vec::new()).await
    }

    /// Starts one with these additional logins.
    ///
    /// # Panics
    /// It does not start.
    pub async fn with(more: Vec<Login>) -> Self {
        let test = Self::one(Layout::Fleet(more)).await;
        test.provision(Wanted::default()).await;
        test
    }

    /// Starts one with one account, one user `admin`, and no stream.
    ///
    /// # Panics
    /// It does not start.
    pub async fn alone() -> Self {
        Self::one(Layout::Alone).await
    }

    /// Starts one with this layout, without streams.
    ///
    /// # Panics
    /// It does not start.
    pub async fn laid_out(layout: Layout) -> Self {
        Self::one(layout).await
    }

    async fn one(layout: Layout) -> Self {
        let (folder, home, server) = prepare();
        let mut ports = Ports::default();
        let ports = (ports.pick(0).unwrap(), ports.pick(0).unwrap());
        let nats = Nats::prepare(&home, &server, ports, layout).unwrap();
        let mut test = Self::of(folder, home, nats);
        test.until_ready().await;
        test
    }

    /// Starts a cluster of three, each stream on all three; the first owns the folder.
    ///
    /// # Panics
    /// It does not start.
    pub async fn cluster() -> Vec<Self> {
        Self::cluster_with(Vec::new()).await
    }

    /// Starts one with these additional logins.
    ///
    /// # Panics
    /// It does not start.
    pub async fn cluster_with(more: Vec<Login>) -> Vec<Self> {
        let (folder, home, server) = prepare();
        let mut ports = Ports::default();
        let mut pick = || ports.pick(0).unwrap();
        let numbers: Vec<_> = (0..3).map(|_| (pick(), pick(), pick())).collect();
        let servers = Nats::prepare_cluster(&home, &server, &numbers, &Layout::Fleet(more)).unwrap();
        let mut tests: Vec<Self> =
            servers.into_iter().map(|nats| Self::of(folder.clone(), StackDir::open(&folder).unwrap(), nats)).collect();
        for test in &mut tests {
            test.until_ready().await;
        }
        tests[0].provision(Wanted { replicas: Some(3), ..Wanted::default() }).await;
        tests
    }

    /// Provisions as the administration: makes streams and durable consumers, and changes what differs.
    ///
    /// # Panics
    /// NATS refuses.
    pub async fn provision(&self, wanted: Wanted) {
        // A cluster has no leader at first.
        until("the streams and the durable consumers are made", || async {
            let made = Box::pin(nats::provision(&self.home, &self.nats.address(), wanted)).await;
            made.inspect_err(|error| eprintln!("{error:#}")).is_ok()
        })
        .await;
    }

    fn of(folder: PathBuf, home: StackDir, nats: Nats) -> Self {
        let program = nats.program();
        let child = program.spawn().unwrap();
        Self { folder, home, nats, program, child }
    }

    /// The port for clients.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.nats.port
    }

    /// The store folder of JetStream.
    #[must_use]
    pub fn store(&self) -> &std::path::Path {
        &self.nats.store
    }

    /// The folder in which it stores an account's streams.
    ///
    /// # Panics
    /// The account's key cannot be read.
    #[must_use]
    pub fn streams(&self, owner: &str) -> PathBuf {
        nats::streams(&self.home, &self.nats.store, owner).unwrap()
    }

    /// Waits until it is ready; or has ended, as when another process took its port: what answers then is another's.
    async fn until_ready(&mut self) {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let (child, address) = (Mutex::new(&mut self.child), (Ipv4Addr::LOCALHOST, self.nats.port));
        let ended = || child.lock().unwrap().try_wait().unwrap().is_some();
        until("nats-server is ready", || async {
            ended() || self.program.is_ready(&http).await && TcpStream::connect(address).await.is_ok()
        })
        .await;
        assert!(!ended(), "nats-server has ended: {}", std::fs::read_to_string(&self.program.log).unwrap());
    }

    /// The address for clients.
    #[must_use]
    pub fn address(&self) -> String {
        self.nats.address()
    }

    /// The home of its keys and credentials.
    #[must_use]
    pub const fn home(&self) -> &StackDir {
        &self.home
    }

    /// The credentials file of a login.
    #[must_use]
    pub fn credentials(&self, login: &str) -> PathBuf {
        nats::credentials_file(&self.home, login)
    }

    /// The address with the login of the only user, of a server without accounts.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn url(&self) -> String {
        let password = self.home.secret("nats-admin-password").unwrap();
        format!("nats://admin:{password}@127.0.0.1:{}", self.nats.port)
    }

    /// A client with the rights of a login.
    ///
    /// # Panics
    /// It cannot connect.
    pub async fn client(&self, login: &str) -> async_nats::Client {
        let options = async_nats::ConnectOptions::new();
        let options = if login == "admin" {
            options.user_and_password("admin".to_owned(), self.home.secret("nats-admin-password").unwrap())
        } else {
            options
                .credentials_file(self.credentials(login))
                .await
                .unwrap()
                .custom_inbox_prefix(format!("_INBOX_{login}"))
        };
        options.connect(self.address()).await.unwrap()
    }

    /// A client of a user of [`Layout::Text`], with an inbox prefix of its own. What the server refuses it is added to `refused`.
    ///
    /// # Panics
    /// It cannot connect.
    pub async fn user(&self, name: &str, password: &str, refused: &Arc<Mutex<Vec<String>>>) -> async_nats::Client {
        let refused = Arc::clone(refused);
        let options = async_nats::ConnectOptions::with_user_and_password(name.to_owned(), password.to_owned());
        let options = options.custom_inbox_prefix(format!("_INBOX_{name}")).event_callback(move |event| {
            if let async_nats::Event::ServerError(error) = &event {
                refused.lock().unwrap().push(error.to_string());
            }
            std::future::ready(())
        });
        options.connect(self.address()).await.unwrap()
    }

    /// JetStream as the administration: of the one account, or of that of the todos' events.
    ///
    /// # Panics
    /// It cannot connect.
    pub async fn jetstream(&self) -> async_nats::jetstream::Context {
        self.jetstream_of("todo").await
    }

    /// JetStream as the administration: of the one account, or of that of a service's events.
    ///
    /// # Panics
    /// It cannot connect.
    pub async fn jetstream_of(&self, service: &str) -> async_nats::jetstream::Context {
        let login = if self.nats.is_alone() { "admin".to_owned() } else { format!("{service}-admin") };
        async_nats::jetstream::new(self.client(&login).await)
    }

    /// Publishes that a tenant has this status, so many seconds after it signed up, at this version of it, as identity does.
    ///
    /// # Panics
    /// NATS refuses.
    pub async fn set_status(&self, tenant: &str, status: TenantStatus, (seconds, version): (i64, i32)) {
        let actor = Actor { id: UserId::example(), kind: ActorKind::Service };
        self.publish(tenant, TenantStatusChangedV1 { tenant: Tenant { status, ..at(seconds, version) }, actor }).await;
    }

    /// The same for a tenant that was erased.
    ///
    /// # Panics
    /// NATS refuses.
    pub async fn erase(&self, tenant: &str, (seconds, version): (i64, i32)) {
        let actor = Actor { id: UserId::example(), kind: ActorKind::Service };
        self.publish(tenant, TenantDeletedV1 { tenant: at(seconds, version), actor }).await;
    }

    /// Publishes that a tenant has this member, as identity does.
    ///
    /// # Panics
    /// NATS refuses.
    pub async fn add_member(&self, tenant: &str, member: Member) {
        let actor = Actor { id: UserId::example(), kind: ActorKind::User };
        self.publish(tenant, MemberAddedV1 { member, actor }).await;
    }

    /// The same for a member who has left.
    ///
    /// # Panics
    /// NATS refuses.
    pub async fn remove_member(&self, tenant: &str, member: Member) {
        let actor = Actor { id: UserId::example(), kind: ActorKind::User };
        self.publish(tenant, MemberRemovedV1 { member, actor }).await;
    }

    /// Publishes an event of a tenant, as the relay of its service does.
    async fn publish<D: EventType>(&self, tenant: &str, data: D) {
        let id = EventId::new(unique("").parse().unwrap());
        let envelope = Envelope::new(id, tenant.parse().unwrap(), data);
        let (_, service) = envelope.source.rsplit_once('/').unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("content-type", envelope::CONTENT_TYPE);
        headers.insert("Outbox-Seq", ROWS.fetch_add(1, Ordering::Relaxed).to_string());
        let (subject, payload) = (subject::of(D::TYPE, &envelope.tenant), serde_json::to_vec(&envelope).unwrap());
        let producer = async_nats::jetstream::new(self.client(service).await);
        producer.publish_with_headers(subject, headers, payload.into()).await.unwrap().await.unwrap();
    }

    /// JetStream as the administration of dead letters, replays, audit and advisories.
    ///
    /// # Panics
    /// It cannot connect.
    pub async fn records(&self) -> async_nats::jetstream::Context {
        async_nats::jetstream::new(self.client("records-admin").await)
    }

    /// Kills it with SIGKILL, and waits until it is gone.
    ///
    /// # Panics
    /// It cannot be killed.
    pub async fn kill(&mut self) {
        signal(self.child.id().unwrap(), Signal::SIGKILL).unwrap();
        self.child.wait().await.unwrap();
    }

    /// Starts it again, on the same ports, with what its store holds. If that was wiped, the administration makes streams
    /// and durable consumers again.
    ///
    /// # Panics
    /// It does not start.
    pub async fn restart(&mut self) {
        let wiped = !self.nats.store.exists();
        self.child = self.program.spawn().unwrap();
        self.until_ready().await;
        if wiped && !self.nats.is_alone() {
            self.provision(Wanted::default()).await;
        }
    }

    /// Starts it again with what its store holds and a new layout, as an upgrade does.
    ///
    /// # Panics
    /// It does not start.
    pub async fn lay_out(&mut self, layout: Layout) {
        signal(self.child.id().unwrap(), Signal::SIGTERM).unwrap();
        self.child.wait().await.unwrap();
        self.nats = Nats::prepare(&self.home, &program(), (self.nats.port, self.nats.monitor), layout).unwrap();
        self.program = self.nats.program();
        self.restart().await;
    }

    /// Starts it again with one more line of configuration.
    ///
    /// # Panics
    /// It does not start.
    pub async fn configure(&mut self, line: &str) {
        self.kill().await;
        let path = self.home.path("conf/nats.conf");
        let configuration = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{configuration}{line}\n")).unwrap();
        self.restart().await;
    }

    /// Removes everything that JetStream has stored; only while it is not running.
    ///
    /// # Panics
    /// It cannot be removed.
    pub fn wipe(&self) {
        std::fs::remove_dir_all(&self.nats.store).unwrap();
    }
}

fn prepare() -> (PathBuf, StackDir, PathBuf) {
    // The program is there already: it was fetched together with the shared backing services.
    crate::Backing::shared();
    let folder = std::env::temp_dir().join(unique("flotilla-nats-"));
    let home = StackDir::open(&folder).unwrap();
    (folder, home, program())
}

fn program() -> PathBuf {
    let pinned = devstack::install::version("NATS_SERVER").unwrap();
    devstack::stack_dir::cache().unwrap().join("nats-server").join(pinned).join("bin/nats-server")
}

impl Drop for TestNats {
    fn drop(&mut self) {
        self.child.start_kill().ok();
        // The server may still be writing: what it writes after this disturbs no test.
        while self.child.try_wait().is_ok_and(|status| status.is_none()) {
            std::thread::yield_now();
        }
        std::fs::remove_dir_all(&self.folder).ok();
    }
}
