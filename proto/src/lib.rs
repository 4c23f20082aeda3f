//! The wire: messages and services of both daemons, generated from the `.proto` files of this folder, and nothing else.
//!
//! **Invariant:** no engine is named here. An engine is a string, its settings are a map that only its driver reads.
#![allow(missing_docs, clippy::all, reason = "generated code; the comments stand in the .proto files")]

/// Messages that both daemons speak about.
pub mod types {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("regent.types.v1");
    }
}

/// What the coordinator asks of an agent.
pub mod agent {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("regent.agent.v1");
    }
}

/// What people and platforms ask of the coordinator, and what a node asks when it joins.
pub mod coordinator {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("regent.coordinator.v1");
    }
}

/// All files as an encoded `FileDescriptorSet`, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
