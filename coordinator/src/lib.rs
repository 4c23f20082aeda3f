//! The coordinator: holds what is wanted of every cluster, decides, and carries out changes as durable operations.
//!
//! Read in this order: [`model`] (what is stored), [`detector`] and [`planner`] (what is decided, purely), [`operation`]
//! (how it is carried out), [`cluster`] (the loop around them), [`nodes`] (how agents are heard and told), [`authority`] (who
//! is granted a lease), [`api`].

pub mod api;
pub mod assembly;
pub mod audit;
pub mod authority;
pub mod cluster;
pub mod commands;
pub mod config;
pub mod detector;
pub mod environment;
pub mod events;
pub mod hook;
pub mod http;
pub mod identity;
pub mod model;
pub mod nodes;
pub mod operation;
pub mod pki;
pub mod planner;
pub mod secrets;
mod sequence;
pub mod store;
