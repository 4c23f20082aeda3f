//! x
use crate::store::Store;
use regent_common::clock::Clock;
use std::sync::Arc;
#[derive(Clone)]
pub struct AuditLog;
impl AuditLog {
    pub fn new(_: Arc<dyn Store>, _: Arc<dyn Clock>) -> Self {
        Self
    }
    pub async fn record(&self, _: &str, _: &str, _: &str, _: &str, _: &str, _: &str) {}
}
