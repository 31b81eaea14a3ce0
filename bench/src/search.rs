//! The projector and the search.

use clap::Args;

use crate::process;
use crate::report::{figure, heading};
use crate::stack::Bench;

#[derive(Args, Default)]
pub struct ProjectorArgs {}
#[derive(Args, Default)]
pub struct SearchableArgs {}

pub async fn projector(_bench: &Bench, _args: &ProjectorArgs) -> Result<(), anyhow::Error> {
    Ok(())
}
pub async fn searchable(_bench: &Bench, _args: &SearchableArgs) -> Result<(), anyhow::Error> {
    Ok(())
}

pub async fn memory(bench: &Bench) -> Result<(), anyhow::Error> {
    heading("Memory of each service, idle after its start");
    for unit in ["gateway", "todo", "search-projector"] {
        figure(unit, &format!("{:.1} MiB", process::resident(bench.pid(unit))));
    }
    Ok(())
}
