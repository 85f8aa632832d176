//! ashd's side of a sandbox: the launcher's client and the handle of a running sandbox.

mod channel;
pub mod confinement;
mod conversation;
pub mod handle;
pub mod launcher_client;
pub mod measure;
pub mod usage;

pub use conversation::Watched;
pub use handle::{Sandbox, SandboxEvent};
pub use launcher_client::{Launcher, LauncherError};
