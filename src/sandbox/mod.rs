//! ashd's side of a sandbox: the client of the launcher and the handle of one running sandbox.

pub mod handle;
pub mod launcher_client;

pub use handle::{Sandbox, SandboxEvent};
pub use launcher_client::{Launcher, LauncherError};
