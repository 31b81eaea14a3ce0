//! Writes through the edge.

use clap::Args;

use crate::stack::Bench;

#[derive(Args, Default)]
pub struct EdgeArgs {}

pub async fn run(_bench: &Bench, _args: &EdgeArgs) -> Result<(), anyhow::Error> {
    Ok(())
}
