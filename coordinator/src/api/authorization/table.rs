//! Who may call what: one row for each method of the coordinator.
//!
//! **Invariant:** every method of the coordinator's services stands here exactly once, and nothing else does; a test compares
//! the table with the descriptors. A method that is not here is refused.

pub use crate::model::user::UserRole;

/// What a method wants of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requirement {
    /// Nothing, not even a certificate.
    Open,
    /// A valid certificate of ours, whoever it names.
    Certificate,
    /// A node's certificate.
    Node,
    /// A user's certificate and at least this role.
    User(UserRole),
}

const OPEN: Requirement = Requirement::Open;
const CERTIFICATE: Requirement = Requirement::Certificate;
const NODE: Requirement = Requirement::Node;
const VIEWER: Requirement = Requirement::User(UserRole::Viewer);
const OPERATOR: Requirement = Requirement::User(UserRole::Operator);
const ADMIN: Requirement = Requirement::User(UserRole::Admin);

/// Every method of the coordinator.
pub const METHODS: &[(&str, Requirement)] = &[
    ("/regent.coordinator.v1.ClusterService/CreateCluster", OPERATOR),
    ("/regent.coordinator.v1.ClusterService/AdoptCluster", OPERATOR),
    ("/regent.coordinator.v1.ClusterService/GetCluster", VIEWER),
    ("/regent.coordinator.v1.ClusterService/ListClusters", VIEWER),
    ("/regent.coordinator.v1.ClusterService/UpdateCluster", OPERATOR),
    ("/regent.coordinator.v1.ClusterService/DeleteCluster", ADMIN),
    ("/regent.coordinator.v1.ClusterService/ResyncCluster", OPERATOR),
    ("/regent.coordinator.v1.ClusterService/ComparePair", OPERATOR),
    ("/regent.coordinator.v1.ClusterService/FailoverCluster", OPERATOR),
    ("/regent.coordinator.v1.ClusterService/AddMember", OPERATOR),
    ("/regent.coordinator.v1.ClusterService/RemoveMember", OPERATOR),
    ("/regent.coordinator.v1.ClusterService/PromoteMember", OPERATOR),
    ("/regent.coordinator.v1.ClusterService/SetAllowList", OPERATOR),
    ("/regent.coordinator.v1.ClusterService/GetCredentials", OPERATOR),
    ("/regent.coordinator.v1.NodeService/GetNode", VIEWER),
    ("/regent.coordinator.v1.NodeService/ListNodes", VIEWER),
    ("/regent.coordinator.v1.OperationService/GetOperation", VIEWER),
    ("/regent.coordinator.v1.OperationService/ListOperations", VIEWER),
    ("/regent.coordinator.v1.OperationService/WatchOperation", VIEWER),
    ("/regent.coordinator.v1.OperationService/CancelOperation", OPERATOR),
    ("/regent.coordinator.v1.IdentityService/CreateToken", OPERATOR),
    ("/regent.coordinator.v1.IdentityService/CreateUser", ADMIN),
    ("/regent.coordinator.v1.IdentityService/ListUsers", VIEWER),
    ("/regent.coordinator.v1.IdentityService/RevokeUser", ADMIN),
    ("/regent.coordinator.v1.IdentityService/RevokeNode", ADMIN),
    ("/regent.coordinator.v1.IdentityService/RenewCertificate", CERTIFICATE),
    ("/regent.coordinator.v1.EnrollmentService/JoinNode", OPEN),
    ("/regent.coordinator.v1.EnrollmentService/AnnounceNode", NODE),
    ("/regent.coordinator.v1.CatalogService/ListEngines", VIEWER),
    ("/regent.coordinator.v1.AuditService/ListAuditRecords", VIEWER),
    ("/regent.coordinator.v1.EventService/WatchEvents", VIEWER),
];

/// Standard services that are served beside ours: load balancers ask for health without a certificate.
const STANDARD: &[(&str, Requirement)] = &[
    ("/grpc.health.v1.Health/", OPEN),
    ("/grpc.reflection.v1.ServerReflection/", CERTIFICATE),
    ("/grpc.reflection.v1alpha.ServerReflection/", CERTIFICATE),
];

/// What the method of this path wants; `None` for a method that there is not.
pub fn requirement(path: &str) -> Option<Requirement> {
    let standard = || STANDARD.iter().find(|(service, _)| path.starts_with(service));
    METHODS.iter().find(|(method, _)| *method == path).or_else(standard).map(|(_, requirement)| *requirement)
}

// === impl Requirement ===

impl Requirement {
    /// Whether a call of such a method is written to the audit, whatever comes of it.
    pub fn is_audited(self) -> bool {
        match self {
            Self::Open | Self::Certificate | Self::Node => false,
            Self::User(role) => role > UserRole::Viewer,
        }
    }
}
