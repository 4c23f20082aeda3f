//! NodeService: what is known of the machines.

use std::sync::Arc;

use regent_common::{
    error::{Reason, refuse},
    ids::NodeName,
};
use regent_proto::coordinator::v1::{
    GetNodeRequest, ListNodesRequest, ListNodesResponse, Node, node_service_server::NodeService,
};
use tonic::{Request, Response, Status};

use super::{Api, create, page, view};

/// The service.
pub struct NodeApi(pub Arc<Api>);

#[tonic::async_trait]
impl NodeService for NodeApi {
    async fn get_node(&self, request: Request<GetNodeRequest>) -> Result<Response<Node>, Status> {
        let text = &request.get_ref().name;
        let name = NodeName::from_resource(text).map_err(|e| refuse(Reason::NameInvalid, format!("name: {e}")))?;
        let stored = self.0.node_record(&name).await?.ok_or_else(|| {
            refuse(Reason::NodeNotFound, format!("there is no node {name}: see `regentctl node list`"))
        })?;
        let assignment = self.0.assignment(&name).await?;
        let environment = self.0.directory.environment();
        let (own_machine, now) = (&environment.own_machine, environment.clock.boottime());
        Ok(Response::new(view::node(&stored, &self.0.table.view(&name), assignment.as_ref(), own_machine, now)))
    }

    async fn list_nodes(&self, request: Request<ListNodesRequest>) -> Result<Response<ListNodesResponse>, Status> {
        let request = request.into_inner();
        let candidates = self.0.candidates().await?;
        let environment = self.0.directory.environment();
        let (own_machine, now) = (&environment.own_machine, environment.clock.boottime());
        let render =
            |node: create::Candidate| view::node(&node.record, &node.view, node.assignment.as_ref(), own_machine, now);
        let rows = candidates
            .into_iter()
            .filter(|(_, node)| !request.spare_only || node.assignment.is_none())
            .map(|(name, node)| (name.to_string(), render(node)));
        let (nodes, next_page_token) = page(rows, request.page_size, &request.page_token)?;
        Ok(Response::new(ListNodesResponse { nodes, next_page_token }))
    }
}
