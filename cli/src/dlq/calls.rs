//! The APIs of dead letters and of their jobs.

use proto::ops::Job;
use proto::ops::job_service_client::JobServiceClient;
use proto::ops::letter_service_client::LetterServiceClient;
use serde_json::Value;

use crate::context::Context;
use crate::processes::{self, Port};

/// The service that keeps dead letters.
pub const SERVICE: &str = fleet::OPERATIONS;

/// The API of dead letters, at their service.
pub type Letters = LetterServiceClient<Port>;

/// The API of jobs, at their service.
pub type Jobs = JobServiceClient<Port>;

/// The states of unsettled letters.
pub const UNSETTLED: [&str; 2] = ["open", "failed_again"];

/// Connects to the API of jobs.
pub async fn jobs(context: &Context) -> Result<Jobs, anyhow::Error> {
    Ok(JobServiceClient::new(context.port(SERVICE).await?))
}

/// A job as JSON.
pub fn json_of(job: &Job) -> Result<Value, anyhow::Error> {
    processes::json_with(job, "selection")
}
