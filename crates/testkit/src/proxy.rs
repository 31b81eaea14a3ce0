//! A fault proxy (toxiproxy) in front of a backing service: cut, and restored.

use std::process::Stdio;
use std::sync::Arc;

use devstack::ports::Ports;
use serde_json::json;
use tokio::process::{Child, Command};

use crate::until;

/// A proxy for one address; dropping this stops it.
pub struct TestProxy {
    child: Child,
    api: String,
    http: reqwest::Client,
    /// The address to connect to instead.
    pub port: u16,
}

impl TestProxy {
    /// Starts one in front of a port of this machine.
    ///
    /// # Panics
    /// It cannot be started.
    pub async fn to(upstream: u16) -> Self {
        let program = devstack::install::toxiproxy(&(Arc::new(|_: &str| {}) as devstack::Reporter)).await.unwrap();
        let mut ports = Ports::default();
        let (api, port) = (ports.pick(0).unwrap(), ports.pick(0).unwrap());
        let mut command = Command::new(program);
        command.args(["-host", "127.0.0.1", "-port", &api.to_string()]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let proxy = Self { child, api: format!("http://127.0.0.1:{api}"), http, port };
        until("the fault proxy is ready", || async {
            proxy.http.get(format!("{}/version", proxy.api)).send().await.is_ok()
        })
        .await;
        let listen = json!({
            "name": "part", "listen": format!("127.0.0.1:{port}"), "upstream": format!("127.0.0.1:{upstream}"),
        });
        proxy.post("/proxies", &listen).await;
        proxy
    }

    async fn post(&self, path: &str, body: &serde_json::Value) {
        let answer = self.http.post(format!("{}{path}", self.api)).json(body).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    }

    /// Stops all traffic without closing a connection: a black hole.
    ///
    /// # Panics
    /// The proxy has stopped.
    pub async fn cut(&self) {
        for stream in ["upstream", "downstream"] {
            let toxic = json!({"name": stream, "type": "timeout", "stream": stream, "attributes": {"timeout": 0}});
            self.post("/proxies/part/toxics", &toxic).await;
        }
    }

    /// Restores the traffic.
    ///
    /// # Panics
    /// The proxy has stopped.
    pub async fn mend(&self) {
        self.post("/reset", &json!({})).await;
    }
}

impl Drop for TestProxy {
    fn drop(&mut self) {
        self.child.start_kill().ok();
    }
}
