//! The gRPC server: reads a request, runs one command, writes the response.

use contracts::events::harbour::LogbookId;
use proto::harbour as pb;
use proto::harbour::harbour_service_server::HarbourService;
use service::grpc::{reading, writing};
use service::page::{self, PageTokens};
use service::{Failure, IfMatch};
use tonic::{Request, Response, Status};

use crate::{commands, wire};

/// The implementation of `flotilla.harbour.v1.HarbourService`.
pub struct Harbour {
    /// The dependencies of the commands.
    pub app: commands::App,
    /// For lists.
    pub pages: PageTokens,
}

type RpcResult<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl HarbourService for Harbour {
    async fn create_vessel(&self, request: Request<pb::CreateVesselRequest>) -> RpcResult<pb::Vessel> {
        let (call, request) = writing(request, "CreateVessel")?;
        let draft = wire::vessel_draft(request.vessel.as_ref())?;
        response(commands::create_vessel(&self.app, &call, draft).await, wire::vessel)
    }

    async fn get_vessel(&self, request: Request<pb::GetVesselRequest>) -> RpcResult<pb::Vessel> {
        let (call, request) = reading(request)?;
        response(commands::get_vessel(&self.app, &call, wire::vessel_id(&request.id)?).await, wire::vessel)
    }

    async fn list_vessels(&self, request: Request<pb::ListVesselsRequest>) -> RpcResult<pb::ListVesselsResponse> {
        let (call, request) = reading(request)?;
        let (query, size) = (wire::vessel_query(&request)?, page::size(request.page_size)?);
        let question = (call.caller.tenant.as_str(), "vessels", &request.filter, &request.order_by);
        let after = self.pages.read(&question, &request.page_token)?;
        let found =
            commands::list_vessels(&self.app, &call, &query, after.as_ref(), size).await.map_err(Failure::from)?;
        let (vessels, next_page_token) = self.pages.found(&question, size, found, wire::vessel)?;
        Ok(Response::new(pb::ListVesselsResponse { vessels, next_page_token }))
    }

    async fn update_vessel(&self, request: Request<pb::UpdateVesselRequest>) -> RpcResult<pb::Vessel> {
        let (call, request) = writing(request, "UpdateVessel")?;
        let id = wire::vessel_id(&request.id)?;
        let (if_match, patch) = wire::vessel_patch(request.vessel.as_ref(), request.update_mask.as_ref())?;
        response(commands::update_vessel(&self.app, &call, id, &if_match, patch).await, wire::vessel)
    }

    async fn delete_vessel(&self, request: Request<pb::DeleteVesselRequest>) -> RpcResult<()> {
        let (call, request) = writing(request, "DeleteVessel")?;
        let (id, if_match) = (wire::vessel_id(&request.id)?, IfMatch::parse(&request.etag));
        response(commands::delete_vessel(&self.app, &call, id, &if_match).await, |()| ())
    }

    async fn get_logbook(&self, request: Request<pb::GetLogbookRequest>) -> RpcResult<pb::Logbook> {
        let (call, request) = reading(request)?;
        response(commands::get_logbook(&self.app, &call, wire::logbook_id(&request.id)?).await, wire::logbook)
    }

    async fn list_logbooks(&self, request: Request<pb::ListLogbooksRequest>) -> RpcResult<pb::ListLogbooksResponse> {
        let (call, request) = reading(request)?;
        let (filter, size) = (wire::logbook_filter(&request)?, page::size(request.page_size)?);
        let question = (call.caller.tenant.as_str(), "logbooks", &request.vessel_id);
        let after: Option<LogbookId> = self.pages.read(&question, &request.page_token)?;
        // One row more than requested shows whether there is a next page.
        let found = commands::list_logbooks(&self.app, &call, &filter, after, size + 1).await.map_err(Failure::from)?;
        let (logbooks, next_page_token) =
            self.pages.page(&question, size, found, (|logbook| logbook.id, wire::logbook))?;
        Ok(Response::new(pb::ListLogbooksResponse { logbooks, next_page_token }))
    }

    async fn update_logbook(&self, request: Request<pb::UpdateLogbookRequest>) -> RpcResult<pb::Logbook> {
        let (call, request) = writing(request, "UpdateLogbook")?;
        let id = wire::logbook_id(&request.id)?;
        let (if_match, patch) = wire::logbook_patch(request.logbook.as_ref(), request.update_mask.as_ref())?;
        response(commands::update_logbook(&self.app, &call, id, &if_match, patch).await, wire::logbook)
    }
}

fn response<T, M>(result: Result<T, commands::Error>, message: impl FnOnce(&T) -> M) -> RpcResult<M> {
    result.map(|done| Response::new(message(&done))).map_err(|error| Failure::from(error).into())
}
