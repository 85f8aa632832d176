//! ashd's side of a sandbox: the client of the launcher and the handle of one running sandbox.

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
