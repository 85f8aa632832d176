//! The interface of sessions to the HTTP layer: requests, their checks, and their errors.

pub mod ask;
pub mod confinement;
pub mod credentials;
pub mod evals;
pub mod exec;
pub mod limits;
pub mod metering;
pub mod new_message;
pub mod owned_session;
pub mod prompt_queue;
pub mod retention;
pub mod service;
pub mod status;
pub mod storage_limit;
pub mod tenants;
mod until_stored;
