//! Every task and thread is supervised, or listed here with its reason.

use crate::source::{PRODUCT, code, product, read, root, rust_files};

/// Where tasks or threads start that `observe::tasks` does not watch, and how many. Each of them
/// ends by itself, reports a panic to its waiter (a join error, a dropped reply), and releases its
/// resources with a guard. Endless loops use `spawn_restarting` or `spawn_essential` instead.
const UNWATCHED: &[(&str, usize)] = &[
    ("src/boot/idle_memory.rs", 1),
    ("src/boot/run.rs", 1),
    ("src/boot/watchdog.rs", 1),
    ("crates/ash-gateway/src/control.rs", 1),
    ("crates/ash-gateway/src/offline/mod.rs", 1),
    ("crates/ash-gateway/src/registry.rs", 1),
    ("crates/ash-gateway/src/serve.rs", 2),
    ("src/http/body.rs", 1),
    ("src/http/connections/mod.rs", 1),
    ("src/http/auth.rs", 1),
    ("crates/ash-kernel/src/probe/attempts.rs", 1),
    ("src/sandbox/handle.rs", 1),
    ("src/sessions/claude/background.rs", 1),
    ("src/sessions/api/status.rs", 1),
    ("src/sessions/driver/lifecycle.rs", 1),
    ("src/sessions/driver/requests.rs", 1),
    ("src/sessions/driver/turn.rs", 1),
    ("src/sessions/api/evals/mod.rs", 1),
    ("src/sessions/api/prompt_queue.rs", 2),
    ("src/sessions/api/metering.rs", 1),
    ("src/sessions/driver/heartbeat.rs", 1),
    ("src/sessions/context.rs", 1),
    ("src/sessions/api/storage_limit.rs", 1),
    ("src/sessions/monitor/resource_monitor.rs", 1),
    ("src/store/durable.rs", 1),
];

#[test]
fn tasks_are_supervised_or_judged() {
    const STARTS: [&str; 5] = ["tokio::spawn(", "thread::spawn(", "thread::Builder", "tasks.spawn(", "servers.spawn("];
    let mut found = Vec::new();
    for path in PRODUCT.iter().flat_map(|dir| rust_files(dir)) {
        let name = path.strip_prefix(root()).expect("below it").to_string_lossy().into_owned();
        let is_test = path.file_name().is_some_and(|name| {
            name.to_string_lossy().ends_with("_tests.rs") || name.to_string_lossy().starts_with("tests")
        });
        if is_test || name == "crates/ash-observe/src/tasks.rs" {
            continue;
        }
        let source = read(&path);
        let code = code(product(&source));
        let count: usize = STARTS.iter().map(|start| code.matches(start).count()).sum();
        if count > 0 {
            found.push((name, count));
        }
    }
    found.sort();
    let mut listed: Vec<(String, usize)> = UNWATCHED.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    listed.sort();
    assert_eq!(found, listed, "judge what is new: does a panic in it leave something stuck? See UNWATCHED");
}
