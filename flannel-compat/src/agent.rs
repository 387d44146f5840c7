//! `weftd`, the node agent.

pub mod cli;
pub mod conf;
mod http;
mod kernel;
mod metrics;
mod service;
mod truth;
