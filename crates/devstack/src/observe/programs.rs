//! The programs that watch a fleet, fetched once into the user's cache when somebody wants them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tokio::process::Command;

use crate::Reporter;
use crate::install::{alone, debian, go_install, jars, run, version};
use crate::stack_dir;

const ZIPKIN_POM: &str = include_str!("../../../../infra/zipkin/pom.xml");
/// The module of the collector of spans.
const OTELCOL: [(&str, &str); 3] = [
    ("go.mod", include_str!("../../../../infra/otelcol/go.mod")),
    ("go.sum", include_str!("../../../../infra/otelcol/go.sum")),
    ("main.go", include_str!("../../../../infra/otelcol/main.go")),
];
/// Prometheus, the exporter of a machine's figures, and what the pages of the first are shown by.
const PROMETHEUS_PACKAGES: [&str; 13] = [
    "prometheus",
    "prometheus-node-exporter",
    "fonts-glyphicons-halflings",
    "libjs-bootstrap4",
    "libjs-d3",
    "libjs-eonasdan-bootstrap-datetimepicker",
    "libjs-jquery",
    "libjs-jquery-hotkeys",
    "libjs-moment",
    "libjs-moment-timezone",
    "libjs-mustache",
    "libjs-popper.js",
    "libjs-rickshaw",
];

/// The paths of the programs that watch a fleet.
#[derive(Debug, Clone)]
pub struct Programs {
    /// Where Debian's packages are unpacked: `/` if the machine has them.
    pub debian: PathBuf,
    /// Alertmanager.
    pub alertmanager: PathBuf,
    /// OpenTelemetry's collector.
    pub otelcol: PathBuf,
    /// Zipkin's jar.
    pub zipkin: PathBuf,
}

/// Whether somebody has had them fetched; the last of them is the largest.
#[must_use]
pub fn wanted() -> bool {
    let fetched = |pinned: &str| Some(stack_dir::cache().ok()?.join("zipkin").join(pinned).exists());
    version("ZIPKIN").ok().and_then(fetched).unwrap_or_default()
}

/// Finds or fetches what watches a fleet.
///
/// # Errors
/// Something cannot be fetched: the error says what, and how to get it.
pub async fn all(say: &Reporter) -> Result<Programs, anyhow::Error> {
    let (cache, _lock) = alone(say).await?;
    Ok(Programs {
        debian: prometheus(&cache, say).await?,
        alertmanager: alertmanager(&cache, say).await?,
        otelcol: otelcol(&cache, say).await?,
        zipkin: zipkin(&cache, say).await?,
    })
}

/// The folder that has Debian's packages: the machine's, or one into which they are unpacked without being installed.
async fn prometheus(cache: &Path, say: &Reporter) -> Result<PathBuf, anyhow::Error> {
    const HAS: [&str; 3] = [
        "usr/bin/prometheus",
        "usr/bin/prometheus-node-exporter",
        "usr/share/prometheus/web/static/rickshaw/rickshaw.min.js",
    ];
    if HAS.iter().all(|file| Path::new("/").join(file).exists()) {
        return Ok("/".into());
    }
    let folder = cache.join("prometheus");
    debian(&folder, &PROMETHEUS_PACKAGES, "fetching Prometheus (35 MB once)", say)
        .await
        .context("or `apt-get install prometheus prometheus-node-exporter`")?;
    Ok(folder)
}

async fn alertmanager(cache: &Path, say: &Reporter) -> Result<PathBuf, anyhow::Error> {
    let pinned = version("ALERTMANAGER")?;
    let bin = cache.join("alertmanager").join(pinned);
    let program = bin.join("alertmanager");
    if !program.exists() {
        let package = format!("github.com/prometheus/alertmanager/cmd/alertmanager@v{pinned}");
        go_install(say, &package, &bin, &format!("building Alertmanager {pinned} (once, a minute)"))
            .await
            .context("Alertmanager could not be built: is Go 1.25 or newer installed (https://go.dev/dl)?")?;
    }
    Ok(program)
}

async fn otelcol(cache: &Path, say: &Reporter) -> Result<PathBuf, anyhow::Error> {
    let pinned = version("OTELCOL")?;
    let folder = cache.join("otelcol").join(pinned);
    let (program, part, source) = (folder.join("otelcol"), folder.join("otelcol.part"), folder.join("source"));
    let is_of = |(name, text): &(&str, &str)| fs::read_to_string(source.join(name)).is_ok_and(|built| built == *text);
    if !program.exists() || !OTELCOL.iter().all(is_of) {
        fs::create_dir_all(&source)?;
        fs::remove_file(&program).ok();
        for (name, text) in OTELCOL {
            fs::write(source.join(name), text)?;
        }
        let mut go = Command::new("go");
        go.env("GOFLAGS", "").args(["build", "-trimpath", "-ldflags=-s -w", "-o"]).arg(&part).arg(".");
        go.current_dir(&source);
        run(&**say, &format!("building OpenTelemetry's collector {pinned} (once, a minute)"), go)
            .await
            .context("the collector of spans could not be built: is Go 1.25 or newer installed (https://go.dev/dl)?")?;
        fs::rename(&part, &program)?;
    }
    Ok(program)
}

async fn zipkin(cache: &Path, say: &Reporter) -> Result<PathBuf, anyhow::Error> {
    let pinned = version("ZIPKIN")?;
    let (property, what) = (format!("zipkin.version={pinned}"), format!("fetching Zipkin ({pinned}, 131 MB once)"));
    let jars = jars(&cache.join("zipkin").join(pinned), ZIPKIN_POM, &property, &**say, &what)
        .await
        .context("Zipkin's jar could not be fetched: is Maven installed (`apt-get install maven`)?")?;
    Ok(jars.join(format!("zipkin-server-{pinned}-exec.jar")))
}
