//! Who watches a fleet on this machine.

use anyhow::ensure;
use clap::Args;
use clap::builder::BoolishValueParser;
use devstack::observe::Observe;

/// Who watches the fleet.
#[derive(Debug, Clone, Default, Args)]
pub struct ObserveArgs {
    /// Start Prometheus, Alertmanager and Zipkin, too: metrics, alerts and traces of the fleet, on this machine alone.
    #[arg(long, env = "FLOTILLA_OBSERVE", value_parser = BoolishValueParser::new())]
    pub observe: bool,
    /// Send alerts to this webhook, as Alertmanager does. Its address may hold a key: the variable keeps it out of the list of processes.
    #[arg(long, env = "FLOTILLA_ALERTS_TO", hide_env_values = true)]
    alerts_to: Option<String>,
}

impl ObserveArgs {
    /// What is asked for. Spans go to one place.
    pub fn wanted(&self, otlp_endpoint: Option<&String>) -> Result<Option<Observe>, anyhow::Error> {
        if !self.observe {
            return Ok(None);
        }
        ensure!(
            otlp_endpoint.is_none(),
            "with --observe, spans go to Zipkin: leave out --otlp-endpoint (FLOTILLA_OTLP_ENDPOINT)"
        );
        let is_url = |url: &String| reqwest::Url::parse(url).is_ok_and(|url| ["http", "https"].contains(&url.scheme()));
        // It may hold a key: it is not repeated.
        ensure!(self.alerts_to.iter().all(is_url), "--alerts-to (FLOTILLA_ALERTS_TO) is no URL with http or https");
        Ok(Some(Observe { alerts_to: self.alerts_to.clone() }))
    }

    /// As variables.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        let observe = self.observe.then(|| ("FLOTILLA_OBSERVE", "true".to_owned()));
        observe.into_iter().chain(self.alerts_to.clone().map(|url| ("FLOTILLA_ALERTS_TO", url))).collect()
    }
}
