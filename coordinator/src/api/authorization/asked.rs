//! What a call asks for, in words for the audit: the resource that it is about, and all that it says but for secrets.
//!
//! It is read from the message as it came, by the descriptors of the wire: no service has to say it, and none can leave it out.

use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, DynamicMessage, MapKey, MessageDescriptor, Value};
use serde_json::{Map, Value as Json};

/// Fields whose values are never written down.
const SECRET: &[&str] = &["token", "certificate_request_pem"];
/// Fields that say nothing of what is asked for.
const LEFT_OUT: &[&str] = &["request_id"];
/// A frame begins with a byte for compression and four for the length of its message.
const FRAME_HEAD: usize = 5;
/// Most characters of what a request says.
const MOST: usize = 2000;

static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(regent_proto::DESCRIPTORS).expect("the build made them"));

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Asked {
    /// Name of the resource; empty where the request names none.
    pub(super) resource: String,
    /// Everything else, as JSON; empty when there is nothing.
    pub(super) said: String,
}

// === impl Asked ===

impl Asked {
    /// Reads the only frame of a request. What cannot be read says nothing here: the service refuses it.
    pub(super) fn read(path: &str, body: &[u8]) -> Self {
        Self::try_read(path, body).unwrap_or_default()
    }

    fn try_read(path: &str, body: &[u8]) -> Option<Self> {
        let (head, message) = body.split_at_checked(FRAME_HEAD)?;
        if head[0] != 0 {
            return None;
        }
        let message = DynamicMessage::decode(input_of(path)?, message).ok()?;
        let mut fields = of_message(&message);
        let resource = [("name", ""), ("cluster", "clusters/"), ("user", "users/"), ("node", "nodes/")];
        let resource = resource.into_iter().find_map(|(field, prefix)| match fields.get(field) {
            Some(Json::String(name)) if !name.is_empty() => {
                let name = if name.contains('/') { name.clone() } else { format!("{prefix}{name}") };
                fields.remove(field);
                Some(name)
            }
            Some(_) | None => None,
        });
        let mut said = if fields.is_empty() { String::new() } else { Json::Object(fields).to_string() };
        if let Some((end, _)) = said.char_indices().nth(MOST) {
            said.truncate(end);
            said.push_str("...");
        }
        Some(Self { resource: resource.unwrap_or_default(), said })
    }
}

fn input_of(path: &str) -> Option<MessageDescriptor> {
    let (service, method) = path.trim_start_matches('/').rsplit_once('/')?;
    let service = POOL.get_service_by_name(service)?;
    service.methods().find(|known| known.name() == method).map(|method| method.input())
}

/// The fields that are set.
fn of_message(message: &DynamicMessage) -> Map<String, Json> {
    let fields = message.fields().filter(|(field, _)| !LEFT_OUT.contains(&field.name()));
    fields
        .map(|(field, value)| {
            let secret = SECRET.contains(&field.name());
            let name = field.name().to_owned();
            (name, if secret { Json::from("(not written down)") } else { of_value(value) })
        })
        .collect()
}

fn of_value(value: &Value) -> Json {
    match value {
        Value::Bool(value) => Json::from(*value),
        Value::I32(value) | Value::EnumNumber(value) => Json::from(*value),
        Value::I64(value) => Json::from(*value),
        Value::U32(value) => Json::from(*value),
        Value::U64(value) => Json::from(*value),
        Value::F32(value) => Json::from(*value),
        Value::F64(value) => Json::from(*value),
        Value::String(value) => Json::from(value.as_str()),
        Value::Bytes(value) => Json::from(format!("{} bytes", value.len())),
        Value::Message(message) => Json::Object(of_message(message)),
        Value::List(values) => values.iter().map(of_value).collect(),
        Value::Map(entries) => {
            let key = |key: &MapKey| match key {
                MapKey::String(key) => key.clone(),
                MapKey::Bool(_) | MapKey::I32(_) | MapKey::I64(_) | MapKey::U32(_) | MapKey::U64(_) => {
                    format!("{key:?}")
                }
            };
            // Sorted: a hash map gives its entries in any order.
            let entries: std::collections::BTreeMap<_, _> =
                entries.iter().map(|(k, v)| (key(k), of_value(v))).collect();
            Json::Object(entries.into_iter().collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use regent_proto::coordinator::v1 as wire;

    use super::*;

    fn asked(method: &str, message: &impl Message) -> Asked {
        let mut body = vec![0, 0, 0, 0, 0];
        message.encode(&mut body).unwrap();
        Asked::read(&format!("/regent.coordinator.v1.{method}"), &body)
    }

    #[test]
    fn a_request_is_told_by_its_resource_and_what_it_says() {
        let remove = wire::RemoveMemberRequest {
            name: "clusters/db".to_owned(),
            member: "db2".to_owned(),
            keep_data: true,
            request_id: "r1".to_owned(),
            ..Default::default()
        };
        let told = asked("ClusterService/RemoveMember", &remove);
        assert_eq!(
            (told.resource.as_str(), told.said.as_str()),
            ("clusters/db", r#"{"keep_data":true,"member":"db2"}"#)
        );
        let create = wire::CreateClusterRequest {
            cluster: "db".to_owned(),
            labels: [("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())].into(),
            nodes: vec!["n1".to_owned()],
            ..Default::default()
        };
        let told = asked("ClusterService/CreateCluster", &create);
        assert_eq!(told.resource, "clusters/db");
        assert_eq!(told.said, r#"{"labels":{"a":"1","b":"2"},"nodes":["n1"]}"#);
        let credentials = wire::GetCredentialsRequest { name: "clusters/db".to_owned() };
        let told = asked("ClusterService/GetCredentials", &credentials);
        assert_eq!((told.resource.as_str(), told.said.as_str()), ("clusters/db", ""));
    }

    #[test]
    fn secrets_are_not_written_down_and_what_cannot_be_read_says_nothing() {
        let join = wire::JoinNodeRequest { token: "hush".to_owned(), node: "n1".to_owned(), ..Default::default() };
        let told = asked("EnrollmentService/JoinNode", &join);
        assert_eq!(told.resource, "nodes/n1");
        assert!(told.said.contains("token") && !told.said.contains("hush"), "{told:?}");
        assert_eq!(Asked::read("/regent.coordinator.v1.ClusterService/CreateCluster", &[]), Asked::default());
        assert_eq!(asked("ClusterService/Unheard", &join), Asked::default());
        let long = wire::PromoteMemberRequest { member: "x".repeat(10_000), ..Default::default() };
        assert!(asked("ClusterService/PromoteMember", &long).said.len() < 2100);
    }
}
