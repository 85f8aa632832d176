//! Real `ash-gateway` processes, as user nobody.
#![allow(dead_code)]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ashd::gateway::client::Gateway;

pub const NOBODY: u32 = 65534;

pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    /// Whether it ends within 5 s.
    pub fn ended(&mut self) -> bool {
        (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(50));
            self.0.try_wait().unwrap().is_some()
        })
    }
}

/// A gateway with no model in its environment; the caller sets `--upstream`.
pub fn command(run: &Path) -> Command {
    assert_eq!(nix::unistd::geteuid().as_raw(), 0, "this test needs root: it is about the users of processes");
    let mut command = Command::new(ash_testkit::program("ash-gateway"));
    command.args(["--client-user", "nobody", "--user", "nobody", "--run-dir"]).arg(run);
    command.arg("--state-dir").arg(run.join("state"));
    for name in ["ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "ASH_ALLOW_INSECURE_UPSTREAM"] {
        command.env_remove(name);
    }
    command.stdout(Stdio::null());
    command
}

/// A running gateway with the offline model.
pub async fn start(run: &Path, args: &[&str]) -> (Process, Gateway) {
    let process = Process(command(run).args(["--upstream", "offline"]).args(args).spawn().unwrap());
    for _ in 0..400 {
        if let Ok(client) = Gateway::connect(run).await
            && client.hello().await.is_ok_and(|hello| hello.pid == process.0.id())
        {
            return (process, client);
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("the gateway did not come up within 10 s");
}

/// A run directory that the gateway's user can enter.
pub fn run_dir() -> tempfile::TempDir {
    let run = tempfile::tempdir().unwrap();
    std::fs::set_permissions(run.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    run
}
