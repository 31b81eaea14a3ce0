//! What operators ask of the service: with their own tokens, and with a reason.

use proto::ops;
use proto::ops::audit_service_client::AuditServiceClient;
use proto::ops::job_service_client::JobServiceClient;
use proto::ops::letter_service_client::LetterServiceClient;
use tonic::{Code, Request};

use crate::harness::Harness;

fn with<T>(bearer: Option<&str>, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(bearer) = bearer {
        request.metadata_mut().insert("authorization", bearer.parse().unwrap());
    }
    request
}

#[tokio::test]
async fn letters_jobs_and_audit_are_operators_alone() {
    let harness = Harness::new().await;
    let (service, port) = harness.with_port().await;
    let url = format!("http://{port}");
    let mut letters = LetterServiceClient::connect(url.clone()).await.unwrap();
    let mut jobs = JobServiceClient::connect(url.clone()).await.unwrap();
    let mut audit = AuditServiceClient::connect(url).await.unwrap();
    let owner = harness.issuer.bearer("acme", "ann");
    for bearer in [None, Some(owner.as_str())] {
        let codes = [
            letters.list_letters(with(bearer, ops::ListLettersRequest::default())).await.map(drop),
            letters.list_groups(with(bearer, ops::ListGroupsRequest::default())).await.map(drop),
            letters.get_letter(with(bearer, ops::GetLetterRequest::default())).await.map(drop),
            letters.edit_letter(with(bearer, ops::EditLetterRequest::default())).await.map(drop),
            letters.get_stats(with(bearer, ops::GetStatsRequest::default())).await.map(drop),
            jobs.plan_job(with(bearer, ops::PlanJobRequest::default())).await.map(drop),
            jobs.create_job(with(bearer, ops::CreateJobRequest::default())).await.map(drop),
            jobs.list_jobs(with(bearer, ops::ListJobsRequest::default())).await.map(drop),
            jobs.get_job(with(bearer, ops::GetJobRequest::default())).await.map(drop),
            jobs.steer_job(with(bearer, ops::SteerJobRequest::default())).await.map(drop),
            audit.list_audit(with(bearer, ops::ListAuditRequest::default())).await.map(drop),
            audit.record_act(with(bearer, ops::RecordActRequest::default())).await.map(drop),
        ]
        .map(|answer| answer.unwrap_err().code());
        assert_eq!(codes, [Code::Unauthenticated; 12], "{bearer:?}");
    }
    assert_eq!(service.shut_down().await, None);
}

#[tokio::test]
async fn an_act_without_a_reason_is_refused_and_one_with_it_bears_the_token_s_name() {
    let harness = Harness::new().await;
    let (service, port) = harness.with_port().await;
    let url = format!("http://{port}");
    let mut letters = LetterServiceClient::connect(url.clone()).await.unwrap();
    let mut jobs = JobServiceClient::connect(url.clone()).await.unwrap();
    let mut audit = AuditServiceClient::connect(url).await.unwrap();
    let olga = harness.issuer.operator("olga");
    let range = ops::CreateRangeJobRequest { consumer: "printer".to_owned(), ..ops::CreateRangeJobRequest::default() };
    let codes = [
        letters.edit_letter(with(Some(&olga), ops::EditLetterRequest::default())).await.map(drop),
        jobs.create_job(with(Some(&olga), ops::CreateJobRequest::default())).await.map(drop),
        jobs.create_range_job(with(Some(&olga), futures::stream::iter([range]))).await.map(drop),
        jobs.steer_job(with(Some(&olga), ops::SteerJobRequest::default())).await.map(drop),
        audit.record_act(with(Some(&olga), ops::RecordActRequest::default())).await.map(drop),
    ]
    .map(|answer| answer.unwrap_err().message().to_owned());
    assert!(codes.iter().all(|said| said.contains("reason")), "{codes:?}");
    let detail = r#"{"consumer":"printer"}"#.to_owned();
    let act = ops::RecordActRequest {
        action: "pause consumer".to_owned(),
        count: 1,
        detail: detail.clone(),
        reason: "a test".to_owned(),
    };
    audit.record_act(with(Some(&olga), act)).await.unwrap();
    let request = ops::ListAuditRequest { lines: 1, action: Some("pause consumer".to_owned()) };
    let line =
        audit.list_audit(with(Some(&olga), request)).await.unwrap().into_inner().message().await.unwrap().unwrap();
    assert_eq!((line.actor.as_str(), line.reason.as_str(), line.detail), ("olga", "a test", detail));
    assert_eq!(service.shut_down().await, None);
}
