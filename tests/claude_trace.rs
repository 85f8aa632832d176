//! A tool cannot trace, read or change the claude that started it. Its user may execute claude's
//! program but not read it; the kernel then lets no process of that user inspect it (`would_dump`
//! in fs/exec.c, `__ptrace_may_access` in kernel/ptrace.c).
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use ash_ctl::claude_install::{EXECUTE_ONLY, PINNED};
use common::{Daemon, Options, fake_claude, real_claude};
use serde_json::{Value, json};

/// Tries every way to inspect the process with the given pid. Prints those that succeed.
const LOOK: &str = r#"
import ctypes, os, sys
libc, pid = ctypes.CDLL(None, use_errno=True), int(sys.argv[1])
class Part(ctypes.Structure): _fields_ = [("at", ctypes.c_void_p), ("length", ctypes.c_size_t)]
own = ctypes.create_string_buffer(8)
mine = Part(ctypes.addressof(own), 8)
def call(result):
    if result < 0: raise OSError(ctypes.get_errno(), "call")
# Its program is not position independent in claude's case; an address without memory answers EFAULT, which is past the permission.
def memory(function):
    if function(pid, ctypes.byref(mine), 1, ctypes.byref(Part(0x400000, 8)), 1, 0) < 0 and ctypes.get_errno() != 14:
        raise OSError(ctypes.get_errno(), "call")
ways = {
    "environ": lambda: open(f"/proc/{pid}/environ", "rb").read(),
    "maps": lambda: open(f"/proc/{pid}/maps", "rb").read(),
    "fd": lambda: os.listdir(f"/proc/{pid}/fd"),
    "exe": lambda: os.readlink(f"/proc/{pid}/exe") == "/opt/claude/claude" or os.abort(),
    "mem": lambda: open(f"/proc/{pid}/mem", "rb"),
    "process_vm_readv": lambda: memory(libc.process_vm_readv),
    "process_vm_writev": lambda: memory(libc.process_vm_writev),
    "pidfd_getfd": lambda: call(libc.syscall(438, libc.syscall(434, pid, 0), 0, 0)),
    "program": lambda: open("/opt/claude/claude", "rb").read(4),
    "ptrace": lambda: call(libc.ptrace(0x4206, pid, 0, 0)),
}
os.kill(pid, 0)
led = []
for name, way in ways.items():
    try: way(); led.append(name)
    except OSError: pass
print("led:", *led)
"#;

/// A copy of the program with this mode, at a path that only root can write.
fn copy(program: &Path, mode: u32) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::Builder::new().prefix("ashd-trace-").tempdir().unwrap();
    let path = dir.path().join("claude");
    std::fs::copy(program, &path).unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    (dir, path)
}

/// What a tool of a session can inspect of a claude with this program and mode.
async fn seen(program: &Path, mode: u32) -> String {
    let (_dir, path) = copy(program, mode);
    let (_daemon, api) = Daemon::deployed(Options::default().env("ASH_CLAUDE_BIN", path.to_str().unwrap())).await;
    let id = api.session("a").await;
    let look = format!("cat > look.py <<'END'\n{LOOK}\nEND\npython3 look.py $PPID");
    let frames = api.turn(&id, &format!("@tool Bash {}\n@text ok", json!({ "command": look }))).await;
    let result = frames.iter().find(|frame| frame.event == "tool_result").expect("a tool result");
    match &result.data["content"] {
        Value::String(text) => text.trim().to_owned(),
        other => other[0]["text"].as_str().unwrap_or_default().trim().to_owned(),
    }
}

#[tokio::test]
async fn a_tool_sees_nothing_of_the_claude_that_started_it() {
    // With a readable program each of these ways succeeds. Yama may refuse some of them everywhere.
    let open = seen(&fake_claude(), 0o755).await;
    let yama = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").is_ok_and(|scope| scope.trim() != "0");
    for way in ["environ", "maps", "fd", "exe", "program"] {
        assert!(open.contains(way), "{way} is not in \"{open}\"");
    }
    for way in ["mem", "process_vm_readv", "process_vm_writev", "ptrace"] {
        assert!(yama || open.contains(way), "{way} is not in \"{open}\"");
    }
    assert_eq!(seen(&fake_claude(), EXECUTE_ONLY).await, "led:");
}

#[tokio::test]
async fn the_real_claude_works_and_its_tools_see_nothing_of_it() {
    assert_eq!(seen(&real_claude(), EXECUTE_ONLY).await, "led:");
}

/// Programs of earlier ashctl versions, at an upgrade and a new installation. A script stays
/// readable, or it would not start.
#[test]
fn an_installed_program_is_closed_and_a_script_is_not() {
    let dir = tempfile::Builder::new().prefix("ashd-modes-").tempdir().unwrap();
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let (program, script) = (dir.path().join(PINNED).join("claude"), dir.path().join("9.9.9/claude"));
    for path in [&program, &script] {
        std::fs::create_dir(path.parent().unwrap()).unwrap();
    }
    std::fs::copy(real_claude(), &program).unwrap();
    std::fs::write(&script, "#!/bin/sh\necho 9.9.9\n").unwrap();
    for arguments in [&["claude", "migrate"][..], &["claude", "install", PINNED]] {
        for path in [&program, &script] {
            std::fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        }
        let mut ashctl = Command::new(env!("CARGO_BIN_EXE_ashctl"));
        ashctl
            .args(arguments)
            .env_clear()
            .env("ASH_CLAUDE_DIR", dir.path())
            .env("ASH_DATA_DIR", dir.path().join("none"));
        let output = ashctl.output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&program), mode(&script)), (EXECUTE_ONLY, 0o755), "{arguments:?}");
    }
}
