//! What an operation was begun with, in its kind's own form: written once by whoever begins it, read by its kind for as long as
//! the operation is kept.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// The form in which they are stored.
pub fn write(parameters: &impl Serialize) -> Value {
    serde_json::to_value(parameters).expect("parameters are plain data")
}

/// What [`write()`] was given. A newer build reads what an older one wrote: fields that were added since have defaults.
pub fn read<T: DeserializeOwned>(stored: &Value) -> T {
    serde_json::from_value(stored.clone()).expect("parameters were written by this kind")
}
