//! `ashctl doctor`, with and without a daemon.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::Command;

use common::{Daemon, Options, real_claude};
use serde_json::Value;

fn doctor(env: &[(&str, &str)], arguments: &[&str]) -> (i32, Value, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ashctl"));
    command.args(["doctor"]).args(arguments).env_clear().env("PATH", "/usr/bin:/bin").envs(env.iter().copied());
    let output = command.output().expect("ashctl runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let json = serde_json::from_str(&text).unwrap_or(Value::Null);
    (output.status.code().expect("an exit code"), json, text)
}

fn finding(diagnosis: &Value, check: &str) -> Value {
    let findings = diagnosis["findings"].as_array().expect("findings");
    findings.iter().find(|finding| finding["check"] == check).unwrap_or_else(|| panic!("no {check}")).clone()
}

const LAYERS: [&str; 14] = [
    "user_namespace",
    "mount_namespace",
    "pid_namespace",
    "ipc_namespace",
    "uts_namespace",
    "cgroup_namespace",
    "network_namespace",
    "landlock",
    "seccomp",
    "capabilities",
    "no_new_privs",
    "memory_limit",
    "cpu_limit",
    "pids_limit",
];

fn traces() -> Vec<String> {
    let cgroups = std::fs::read_dir("/sys/fs/cgroup").expect("cgroups").flatten().map(|entry| entry.path());
    // On cgroup v2 below the mount itself, on the hybrid layout below its directories.
    let places = cgroups.chain(["/sys/fs/cgroup".into(), "/run".into(), "/tmp".into()]);
    let inside = places.flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten());
    inside.map(|entry| entry.path().display().to_string()).filter(|path| path.contains("doctor-")).collect()
}

#[test]
fn without_a_daemon_a_launcher_of_its_own_is_used_and_nothing_stays() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().display().to_string();
    let claude = real_claude().display().to_string();
    let env = [("ASH_DATA_DIR", data.as_str()), ("ASH_RUN_DIR", &data), ("ASH_CLAUDE_BIN", &claude)];
    let (code, diagnosis, text) = doctor(&env, &["--json"]);
    assert_eq!(code, if diagnosis["status"] == "ok" { 0 } else { 1 }, "{text}");
    for layer in LAYERS {
        assert_eq!(finding(&diagnosis, layer)["status"], "ok", "{text}");
    }
    assert_eq!(finding(&diagnosis, "workloads")["status"], "ok", "{text}");
    assert!(finding(&diagnosis, "claude starts")["found"].as_str().unwrap().contains("(Claude Code)"), "{text}");
    assert_eq!(finding(&diagnosis, "launcher")["mend"], "systemctl start ash-launcher");
    assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none(), "the data directory is as it was");
    assert_eq!(traces(), Vec::<String>::new());
    // The same as text.
    let (_, _, table) = doctor(&env, &[]);
    assert!(
        table.contains("ok    landlock") && table.contains("->") && table.contains("checks: 0 failures"),
        "{table}"
    );
}

/// Its launcher is a listening root process: it must not outlive a killed doctor.
#[test]
fn a_killed_doctor_takes_its_launcher_along() {
    let dir = tempfile::tempdir().unwrap();
    let mut doctor = Command::new(env!("CARGO_BIN_EXE_ashctl"));
    doctor.arg("doctor").env_clear().env("PATH", "/usr/bin:/bin");
    doctor.env("ASH_DATA_DIR", dir.path()).env("ASH_RUN_DIR", dir.path()).env("ASH_CLAUDE_BIN", common::fake_claude());
    let mut doctor = doctor.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    let children = format!("/proc/{0}/task/{0}/children", doctor.id());
    let soon = common::patience::patient(std::time::Duration::from_secs(20));
    let (start, mut launcher) = (std::time::Instant::now(), None);
    while launcher.is_none() {
        assert!(start.elapsed() < soon && doctor.try_wait().unwrap().is_none(), "no launcher was seen");
        let all = std::fs::read_to_string(&children).unwrap_or_default();
        // Not before it has executed its program and made its groups: the latest moment of its
        // start.
        launcher = all.split_whitespace().map(str::to_owned).find(|pid| {
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            comm.trim() == "ash-launcher" && !groups(doctor.id()).is_empty()
        });
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let launcher = PathBuf::from(format!("/proc/{}", launcher.unwrap()));
    let run = std::fs::read(launcher.join("cmdline")).unwrap();
    let arguments: Vec<PathBuf> =
        run.split(|byte| *byte == 0).map(|a| PathBuf::from(std::ffi::OsStr::from_bytes(a))).collect();
    doctor.kill().unwrap();
    doctor.wait().unwrap();
    let start = std::time::Instant::now();
    while launcher.join("exe").read_link().is_ok() || !groups(doctor.id()).is_empty() {
        assert!(start.elapsed() < soon, "{arguments:?} outlives the doctor, with {:?}", groups(doctor.id()));
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    // The directories belong to root and stay; they are never used again.
    for path in arguments.iter().filter(|path| path.to_string_lossy().contains("ash-doctor")) {
        let top = path
            .ancestors()
            .find(|above| above.file_name().is_some_and(|n| n.to_string_lossy().contains("ash-doctor")));
        std::fs::remove_dir_all(top.unwrap()).ok();
    }
}

fn groups(doctor: u32) -> Vec<String> {
    let own = format!("ashd-doctor-{doctor}");
    traces().into_iter().filter(|path| path.ends_with(&own)).collect()
}

#[test]
fn a_running_daemon_is_found_and_its_launcher_used() {
    let daemon = Daemon::start(Options::default());
    let config = daemon.dir.join("ashd.toml").display().to_string();
    let (data, run) = (daemon.data().display().to_string(), daemon.run().display().to_string());
    let claude = common::fake_claude().display().to_string();
    let env = [("ASH_DATA_DIR", data.as_str()), ("ASH_RUN_DIR", &run), ("ASH_CLAUDE_BIN", &claude)];
    let (_, diagnosis, text) = doctor(&env, &["--json", "--config", &config]);
    let own = ["ashd confines itself", "launcher confines itself", "gateway confines itself"];
    for check in ["launcher", "gateway", "ashd", "landlock", "memory_limit", "workloads"].into_iter().chain(own) {
        assert_eq!(finding(&diagnosis, check)["status"], "ok", "{check}: {text}");
    }
    let limit = finding(&diagnosis, "memory_limit");
    assert!(limit["found"].as_str().unwrap().contains(&daemon.cgroup), "in the daemon's own group: {limit}");
    assert!(!daemon.data().join("sessions").exists(), "nothing stays");
}

#[test]
fn what_is_broken_is_a_failure_with_the_command_that_mends_it() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().display().to_string();
    let file = dir.path().join("ashd.toml");
    std::fs::write(&file, "[confinement]\nlandlock_abi = 99\nflor = []\n").unwrap();
    let file = file.display().to_string();
    let env = [("ASH_DATA_DIR", data.as_str()), ("ASH_RUN_DIR", &data)];
    let (code, diagnosis, text) = doctor(&env, &["--json", "--config", &file]);
    assert_eq!((code, &diagnosis["status"]), (2, &Value::from("failure")), "{text}");
    let broken = finding(&diagnosis, "configuration");
    assert!(broken["found"].as_str().unwrap().contains("floor"), "the nearest name is told: {broken}");
    std::fs::write(&file, "[confinement]\nlandlock_abi = 99\n").unwrap();
    let (code, diagnosis, text) = doctor(&env, &["--json", "--config", &file]);
    assert_eq!(code, 2, "{text}");
    for check in ["kernel's landlock", "landlock", "claude"] {
        let found = finding(&diagnosis, check);
        assert_eq!(found["status"], "failure", "{found}");
        assert!(found["mend"].as_str().is_some_and(|mend| !mend.is_empty()), "{found}");
    }
}
