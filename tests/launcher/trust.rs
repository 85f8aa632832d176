//! ashd cannot change the directory in which the launcher works as root.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use crate::host::{CLIENT, Host};

#[tokio::test]
async fn the_run_directory_is_roots_and_ashd_cannot_change_it() {
    let host = Host::start("roots");
    host.client().await.list().await.expect("it serves");
    let is = |name: &str| {
        let meta = std::fs::symlink_metadata(host.run_dir().join(name)).expect(name);
        (meta.uid(), meta.gid(), meta.mode() & 0o7777)
    };
    assert_eq!(is("."), (0, 0, 0o755), "ashd could put a link in the place of what root hands over");
    assert_eq!(is("launcher.sock"), (0, CLIENT, 0o660));
    assert_eq!(is("sandboxes"), (0, CLIENT, 0o710));
}

#[test]
fn a_directory_that_ashd_could_exchange_is_refused() {
    let host = Host::start("exchanged");
    let top = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(top.path(), std::fs::Permissions::from_mode(0o755)).expect("mode");
    let run = top.path().join("run");
    let says = |what: &str, word: &str| {
        for check in [false, true] {
            let mut command = std::process::Command::new(ash_testkit::program("ash-launcher"));
            let own = host.run_dir();
            command
                .args(host.command().get_args().map(|arg| if arg == own.as_os_str() { run.as_os_str() } else { arg }));
            command.stdin(std::process::Stdio::null());
            if check {
                command.arg("--check");
            }
            let output = command.output().expect("it starts");
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && text.contains(word), "{what}: {text}");
        }
    };
    // A parent directory: ashd may rename it and put a link there.
    chown(top.path(), Some(CLIENT), Some(CLIENT)).expect("chown");
    says("in ashd's directory", "who could replace it");
    assert!(!run.exists(), "nothing was made");
    chown(top.path(), Some(0), Some(0)).expect("chown");
    // The directory itself, as an earlier launcher created it.
    std::fs::create_dir(&run).expect("made");
    chown(&run, Some(CLIENT), Some(CLIENT)).expect("chown");
    says("ashd's own", "chown root: ");
    assert_eq!(std::fs::metadata(&run).expect("there").uid(), CLIENT, "nothing was changed");
    chown(&run, Some(0), Some(0)).expect("chown");
    std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o777)).expect("mode");
    says("writable", "mode 777");
}
