//! CatalogService: what can be created, as the nodes offer it.

use std::{collections::BTreeMap, sync::Arc};

use regent_common::{ids::NodeName, topology::EngineOffer};
use regent_proto::coordinator::v1::{
    CatalogEntry, ListEnginesRequest, ListEnginesResponse, catalog_service_server::CatalogService,
};
use tonic::{Request, Response, Status};

use super::Api;
use crate::nodes::NodeView;

/// The service.
pub struct CatalogApi(pub Arc<Api>);

/// The engines that these nodes can run, each with all that any of them offers.
fn catalogue(nodes: impl IntoIterator<Item = (NodeName, NodeView)>) -> Vec<CatalogEntry> {
    let mut engines: BTreeMap<String, (EngineOffer, CatalogEntry)> = BTreeMap::new();
    for (node, view) in nodes {
        for offer in view.engines.into_iter().filter(|offer| offer.problem.is_empty()) {
            let first = || (offer.clone(), CatalogEntry::default());
            let (whole, entry) = engines.entry(offer.engine.clone()).or_insert_with(first);
            entry.nodes.push(node.resource());
            if let Some(connection) = offer.connection_with_tls {
                entry.nodes_with_tls.push(node.resource());
                whole.connection_with_tls.get_or_insert(connection);
            }
            for version in offer.versions {
                if !whole.versions.contains(&version) {
                    whole.versions.push(version);
                }
            }
        }
    }
    engines.into_values().map(|(whole, entry)| CatalogEntry { offer: Some((&whole).into()), ..entry }).collect()
}

#[tonic::async_trait]
impl CatalogService for CatalogApi {
    async fn list_engines(&self, _: Request<ListEnginesRequest>) -> Result<Response<ListEnginesResponse>, Status> {
        Ok(Response::new(ListEnginesResponse { engines: catalogue(self.0.table.all()) }))
    }
}

#[cfg(test)]
mod tests {
    use regent_common::topology::ConnectionFormat;

    use super::*;

    fn node(name: &str, version: &str, problem: &str, tls: bool) -> (NodeName, NodeView) {
        let offer = EngineOffer {
            engine: "fake".to_owned(),
            versions: vec![version.to_owned()],
            modes: Vec::new(),
            min_replicas: 0,
            default_replicas: 2,
            max_replicas: 3,
            can_rewind: true,
            forgets_on_crash: false,
            problem: problem.to_owned(),
            connection: ConnectionFormat::default(),
            connection_with_tls: tls.then(ConnectionFormat::default),
        };
        (name.parse().unwrap(), NodeView { engines: vec![offer], ..NodeView::default() })
    }

    #[test]
    fn an_engine_is_listed_with_what_any_node_offers_and_who_does() {
        let nodes = [node("a", "1", "", false), node("b", "2", "", true), node("c", "3", "not installed", true)];
        let [entry] = &catalogue(nodes)[..] else { panic!("one engine") };
        assert_eq!(
            (&entry.nodes[..], &entry.nodes_with_tls[..]),
            (&["nodes/a", "nodes/b"].map(String::from)[..], &["nodes/b".to_owned()][..])
        );
        let offer = entry.offer.as_ref().unwrap();
        assert_eq!(offer.versions, ["1", "2"]);
        assert!(offer.connection_with_tls.is_some());
    }
}
