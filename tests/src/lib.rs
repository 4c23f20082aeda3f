//! The harness: what the process tests, the workload and the bench share. Not shipped.
