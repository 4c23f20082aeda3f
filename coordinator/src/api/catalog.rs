//! CatalogService: what can be created, as the nodes offer it.

use std::{collections::BTreeMap, sync::Arc};

use regent_common::topology::EngineOffer;
use regent_proto::coordinator::v1::{
    CatalogEntry, ListEnginesRequest, ListEnginesResponse, catalog_service_server::CatalogService,
};
use tonic::{Request, Response, Status};

use super::Api;

/// The service.
pub struct CatalogApi(pub Arc<Api>);

#[tonic::async_trait]
impl CatalogService for CatalogApi {
    async fn list_engines(&self, _: Request<ListEnginesRequest>) -> Result<Response<ListEnginesResponse>, Status> {
        let mut engines: BTreeMap<String, (EngineOffer, Vec<String>)> = BTreeMap::new();
        for (node, view) in self.0.table.all() {
            for offer in view.engines.into_iter().filter(|offer| offer.problem.is_empty()) {
                let entry = engines.entry(offer.engine.clone()).or_insert_with(|| (offer.clone(), Vec::new()));
                for version in offer.versions {
                    if !entry.0.versions.contains(&version) {
                        entry.0.versions.push(version);
                    }
                }
                entry.1.push(node.resource());
            }
        }
        let engines = engines.into_values().map(|(offer, nodes)| CatalogEntry { offer: Some((&offer).into()), nodes });
        Ok(Response::new(ListEnginesResponse { engines: engines.collect() }))
    }
}
