//! A wall clock for one daemon that a test can set. The daemon runs in a mount namespace in which
//! `/etc/ld.so.preload` names a library that replaces the clock. Unlike `LD_PRELOAD`, that also
//! reaches a program that clears its environment and executes itself again as another user.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

pub struct Skew {
    etc: PathBuf,
    offset: fs::File,
}

impl Skew {
    pub fn make(dir: &Path) -> Self {
        let (library, offset, etc) = (dir.join("skew.so"), dir.join("skew.offset"), dir.join("etc"));
        fs::write(&offset, 0_i64.to_ne_bytes()).unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/skew.c");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source);
        cc.arg(format!("-DOFFSET_FILE=\"{}\"", offset.display()));
        run(&mut cc);
        run(Command::new("cp").arg("-a").arg("/etc").arg(&etc));
        fs::write(etc.join("ld.so.preload"), format!("{}\n", library.display())).unwrap();
        Self { etc, offset: fs::File::options().write(true).open(offset).unwrap() }
    }

    /// Sets the clock this many milliseconds ahead; behind if negative.
    pub fn set(&self, ms: i64) {
        self.offset.write_all_at(&ms.to_ne_bytes(), 0).unwrap();
    }

    /// `program` with this clock; arguments and environment are added as usual.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", "mount --bind \"$0\" /etc && exec \"$@\""]);
        command.arg(&self.etc).arg(program);
        command
    }
}

fn run(command: &mut Command) {
    let said = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(said.status.success(), "{command:?}: {}", String::from_utf8_lossy(&said.stderr));
}
