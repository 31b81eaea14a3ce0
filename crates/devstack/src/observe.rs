//! What watches a fleet: Prometheus with the fleet's rules and pages, Alertmanager, the exporter of this machine's figures, and
//! OpenTelemetry's collector, which feeds Zipkin with spans.
//!
//! What Prometheus needs to know is written at each start, whether it is started or not: another one may read it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;
use serde_json::json;

mod programs;

pub use programs::{Programs, all as programs, wanted};

use crate::Reporter;
use crate::process::{Program, Ready};
use crate::stack_dir::{StackDir, write_secret};

const CONFIGURATION: &str = include_str!("../../../infra/prometheus/prometheus.yml");
const RULES: &str = include_str!("../../../infra/prometheus/rules.yml");
const PAGES: [(&str, &str); 3] = [
    ("fleet.lib", include_str!("../../../infra/prometheus/consoles/fleet.lib")),
    ("fleet.html", include_str!("../../../infra/prometheus/consoles/fleet.html")),
    ("service.html", include_str!("../../../infra/prometheus/consoles/service.html")),
];

/// The folder of Prometheus' configuration.
const FOLDER: &str = "conf/prometheus";
/// The configuration of Alertmanager.
const ALERTS: &str = "conf/alertmanager.json";
/// How long figures are kept, and how much of them at most.
const KEPT: [&str; 2] = ["--storage.tsdb.retention.time=7d", "--storage.tsdb.retention.size=1GB"];

/// What the watchers are asked for.
#[derive(Debug, Clone, Default)]
pub struct Observe {
    /// A webhook of Alertmanager's; without one, alerts are on its pages alone.
    pub alerts_to: Option<String>,
}

/// Their ports.
#[derive(Debug, Clone, Copy)]
pub struct Watched {
    prometheus: u16,
    alertmanager: u16,
    machine: u16,
    otlp: u16,
    collector: u16,
    zipkin: u16,
    verify: u16,
}

/// What watches one fleet: the programs, their ports, and where alerts go.
pub struct Watching {
    programs: Programs,
    /// Their ports.
    pub ports: Watched,
    observe: Observe,
}

impl Watched {
    /// Chooses them.
    ///
    /// # Errors
    /// No port is free.
    pub fn pick(mut pick: impl FnMut(u16) -> Result<u16, anyhow::Error>) -> Result<Self, anyhow::Error> {
        Ok(Self {
            prometheus: pick(19090)?,
            alertmanager: pick(19093)?,
            machine: pick(19100)?,
            otlp: pick(14317)?,
            collector: pick(18888)?,
            zipkin: pick(19411)?,
            verify: pick(19105)?,
        })
    }

    /// Where services send their spans.
    #[must_use]
    pub fn otlp(&self) -> String {
        format!("http://127.0.0.1:{}", self.otlp)
    }
}

impl Watching {
    /// Finds or fetches the programs, where somebody wants them.
    ///
    /// # Errors
    /// One cannot be fetched: the error says what, and how to get it.
    pub async fn fetched(
        say: &Reporter,
        observe: Option<&Observe>,
        ports: Option<Watched>,
    ) -> Result<Option<Self>, anyhow::Error> {
        match observe.zip(ports) {
            Some((observe, ports)) => {
                Ok(Some(Self { programs: programs(say).await?, ports, observe: observe.clone() }))
            }
            None => Ok(None),
        }
    }
}

/// Writes what Prometheus scrapes, and by which rules it alerts. `scraped` is the operations port of each service.
///
/// # Errors
/// A file cannot be written.
pub fn configure(
    home: &StackDir,
    scraped: impl IntoIterator<Item = (&'static str, u16)>,
    tls: Option<&Path>,
    watched: Option<&Watched>,
) -> Result<(), anyhow::Error> {
    let (folder, alerts) = (home.path(FOLDER), home.path(ALERTS));
    // The address of a webhook in it may hold a key.
    std::fs::remove_file(alerts).ok();
    if watched.is_some() && folder.display().to_string().contains(['*', '?', '[', '\\']) {
        bail!("Prometheus takes {} for a pattern: choose another folder for the stack", folder.display());
    }
    // Nothing of an earlier start is scraped.
    std::fs::remove_dir_all(&folder).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    let write = |name: &str, text: &str| {
        let file = folder.join(name);
        std::fs::create_dir_all(file.parent().unwrap_or(&folder))?;
        std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
    };
    let mut configuration = CONFIGURATION.to_owned();
    if let Some(tls) = tls {
        let authority = json!(tls.join("ca.crt"));
        configuration.push_str(&format!("    tls_config: {{ca_file: {authority}}}\n"));
    }
    write("prometheus.yml", &configuration)?;
    write("rules.yml", RULES)?;
    for (name, page) in PAGES {
        write(&format!("consoles/{name}"), page)?;
    }
    let target = |name: &str, port: u16, scheme: &str| {
        // Figures of earlier starts stay, and at another port it is the same instance.
        let labels = json!({ "job": name, "instance": name, "__scheme__": scheme });
        let target = json!([{ "targets": [format!("127.0.0.1:{port}")], "labels": labels }]);
        write(&format!("targets/{name}.json"), &target.to_string())
    };
    for (name, port) in scraped {
        target(name, port, if tls.is_some() { "https" } else { "http" })?;
    }
    if let Some(Watched { prometheus, alertmanager, machine, collector, verify, .. }) = watched {
        let all = [
            ("prometheus", prometheus),
            ("alertmanager", alertmanager),
            ("machine", machine),
            ("otelcol", collector),
            ("verify", verify),
        ];
        for (name, port) in all {
            target(name, *port, "http")?;
        }
        let alertmanager = json!([{ "targets": [format!("127.0.0.1:{alertmanager}")] }]);
        write("alertmanagers.json", &alertmanager.to_string())?;
    }
    Ok(())
}

/// The collector of spans: it takes them from the start of the first service, and keeps them until Zipkin is there.
///
/// # Errors
/// Its configuration cannot be written.
pub fn collector(home: &StackDir, watching: &Watching) -> Result<(Program, u16), anyhow::Error> {
    let Watched { otlp, collector, zipkin, .. } = &watching.ports;
    let pull = json!({ "pull": { "exporter": { "prometheus": { "host": "127.0.0.1", "port": collector } } } });
    let configuration = json!({
        "receivers": { "otlp": { "protocols": { "grpc": { "endpoint": format!("127.0.0.1:{otlp}") } } } },
        "exporters": { "zipkin": { "endpoint": format!("http://127.0.0.1:{zipkin}/api/v2/spans") } },
        "service": {
            "pipelines": { "traces": { "receivers": ["otlp"], "exporters": ["zipkin"] } },
            "telemetry": { "metrics": { "level": "basic", "readers": [pull] } },
        },
    });
    let file = home.path("conf/otelcol.json");
    std::fs::write(&file, configuration.to_string()).with_context(|| format!("writing {}", file.display()))?;
    let args = vec!["--config".to_owned(), file.display().to_string()];
    let ready = format!("http://127.0.0.1:{collector}/metrics");
    Ok((program(home, "otelcol", watching.programs.otelcol.clone(), args, ready), *otlp))
}

/// The others, in the order of their start, each with its port; `ours` is the folder of our programs.
///
/// # Errors
/// A file or a folder cannot be written.
pub fn watchers(
    home: &StackDir,
    Watching { programs, ports, observe }: &Watching,
    (java, ours): (&Path, &Path),
) -> Result<Vec<(Program, u16)>, anyhow::Error> {
    let Watched { prometheus, alertmanager, machine, zipkin, verify, .. } = *ports;
    let debian = |name: &str| programs.debian.join("usr/bin").join(name);
    let data = |name: &str| -> Result<String, anyhow::Error> {
        let folder = home.path("data").join(name);
        std::fs::create_dir_all(&folder)?;
        Ok(folder.display().to_string())
    };
    let conf = home.path(FOLDER);
    let listen = |port: u16| format!("--web.listen-address=127.0.0.1:{port}");

    let receiver = match &observe.alerts_to {
        Some(url) => json!({ "name": "webhook", "webhook_configs": [{ "url": url, "send_resolved": true }] }),
        None => json!({ "name": "webhook" }),
    };
    let route = json!({
        "receiver": "webhook", "group_by": ["alertname", "job"],
        "group_wait": "1s", "group_interval": "30s", "repeat_interval": "4h",
    });
    let alerts = home.path(ALERTS);
    // The address of a webhook may hold a key.
    write_secret(&alerts, json!({ "route": route, "receivers": [receiver] }).to_string().as_bytes())?;
    let alertmanager_args = vec![
        format!("--config.file={}", alerts.display()),
        format!("--storage.path={}", data("alertmanager")?),
        "--cluster.listen-address=".to_owned(),
        listen(alertmanager),
    ];

    let machine_args = ["disable-defaults", "cpu", "filesystem", "loadavg", "meminfo", "time", "timex"];
    let mut machine_args: Vec<_> = machine_args.iter().map(|name| format!("--collector.{name}")).collect();
    machine_args.push(listen(machine));

    let mut prometheus_args = vec![
        format!("--config.file={}", conf.join("prometheus.yml").display()),
        format!("--storage.tsdb.path={}", data("prometheus")?),
        format!("--web.local-assets={}", programs.debian.join("usr/share/prometheus/web").display()),
        format!("--web.console.templates={}", conf.join("consoles").display()),
        format!("--web.console.libraries={}", conf.join("consoles").display()),
        // By default every page that a browser has open may read.
        format!("--web.cors.origin=http://127[.]0[.]0[.]1:{prometheus}"),
        listen(prometheus),
    ];
    prometheus_args.extend(KEPT.map(ToOwned::to_owned));

    let mut zipkin_args: Vec<_> =
        ["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-jar"].map(ToOwned::to_owned).into();
    // It unpacks libraries there.
    zipkin_args.insert(0, format!("-Djava.io.tmpdir={}", data("zipkin")?));
    zipkin_args.push(programs.zipkin.display().to_string());
    // Its port alone would be opened to everybody.
    zipkin_args.push("--armeria.ports[0].address=127.0.0.1".to_owned());
    zipkin_args.push(format!("--armeria.ports[0].port={zipkin}"));
    zipkin_args.push("--armeria.ports[0].protocols[0]=http".to_owned());
    zipkin_args.push(format!("--zipkin.query.allowed-origins=http://127.0.0.1:{zipkin}"));
    zipkin_args.push("--zipkin.storage.mem.max-spans=100000".to_owned());

    let verify_args = ["verify", "--every", "30", "--rate", "20000", "--listen"].map(ToOwned::to_owned).into_iter();
    let verify_args: Vec<_> = ["--home".to_owned(), home.path("").display().to_string()]
        .into_iter()
        .chain(verify_args)
        .chain([format!("127.0.0.1:{verify}")])
        .collect();

    let at = |port: u16, path: &str| format!("http://127.0.0.1:{port}{path}");
    let of = |name: &str, path: PathBuf, args, port, ready| (program(home, name, path, args, at(port, ready)), port);
    Ok(vec![
        of("machine", debian("prometheus-node-exporter"), machine_args, machine, "/metrics"),
        of("alertmanager", programs.alertmanager.clone(), alertmanager_args, alertmanager, "/-/ready"),
        of("prometheus", debian("prometheus"), prometheus_args, prometheus, "/-/ready"),
        of("verify", ours.join("flotilla"), verify_args, verify, "/healthz"),
        of("zipkin", java.to_owned(), zipkin_args, zipkin, "/health"),
    ])
}

fn program(home: &StackDir, name: &str, path: PathBuf, args: Vec<String>, ready: String) -> Program {
    Program {
        name: name.to_owned(),
        path,
        args,
        env: Vec::new(),
        log: home.log(name),
        user: None,
        stop: Signal::SIGTERM,
        ready: Ready::Http(ready),
        socket: None,
        alive: None,
    }
}
