//! Root touches files of less trusted users only through `kernel::tree`, `kernel::beneath`,
//! `kernel::trusted` and `kernel::private`. In the modules that run as root, every call with a path
//! of the host is listed here with the reason why it is safe; any other call fails this test.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Modules that run as root.
const PRIVILEGED: [&str; 5] = ["bin", "boot", "ctl", "doctor", "launcher"];

/// The directory of a module in [`PRIVILEGED`]: a crate, or a module of ashd.
fn directory(module: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let own = root.join(format!("crates/ash-{module}/src"));
    if own.is_dir() { own } else { root.join("src").join(module) }
}

/// Calls that look up a path by name. A name that ends in `(` or `_` matches as a prefix.
const BY_PATH: &[&str] = &[
    "CWD",
    "Command::new(",
    "DirBuilder::new(",
    "File::create(",
    "File::create_new(",
    "File::open(",
    "File::options(",
    "OpenOptions::new(",
    "SqliteConnectOptions::new(",
    "WalkDir::new(",
    "canonicalize(",
    "chown(",
    "lchown(",
    "mkfifo(",
    "statvfs(",
    "symlink_metadata(",
    "fs::copy(",
    "fs::create_dir",
    "fs::exists(",
    "fs::hard_link(",
    "fs::metadata(",
    "fs::open(",
    "fs::read(",
    "fs::read_dir(",
    "fs::read_link(",
    "fs::read_to_string(",
    "fs::remove_",
    "fs::rename(",
    "fs::set_permissions(",
    "fs::soft_link(",
    "fs::symlink(",
    "fs::write(",
];

/// The run directory: boot refuses one that others can write, including its parents.
const RUN: &str = "in the run directory, which is root's alone";
const OF_THE_KERNEL: &str = "a file of the kernel";
const CALLERS: &str = "a file that the caller of the command names, opened for reading";

/// File, call, maximum count, reason.
const ALLOWED: &[(&str, &str, usize, &str)] = &[
    ("boot/companions.rs", "Command::new(", 1, "this program itself"),
    ("boot/companions.rs", "OpenOptions::new(", 1, RUN),
    ("boot/companions.rs", "fs::read_to_string(", 1, RUN),
    ("boot/companions.rs", "fs::rename(", 1, RUN),
    ("boot/companions.rs", "fs::write(", 1, RUN),
    ("boot/directories.rs", "fs::metadata(", 1, "looks whether ashd can pass, and changes nothing"),
    ("boot/first_key.rs", "File::open(", 1, "runs as ashd"),
    ("boot/first_key.rs", "OpenOptions::new(", 1, "runs as ashd"),
    ("boot/first_key.rs", "fs::remove_", 1, "runs as ashd"),
    ("boot/first_key.rs", "fs::rename(", 1, "runs as ashd"),
    ("boot/keeper.rs", "Command::new(", 1, "a program that the root stage named by its own arguments"),
    ("boot/keeper.rs", "File::open(", 1, RUN),
    ("boot/keeper.rs", "OpenOptions::new(", 1, RUN),
    ("boot/keeper.rs", "fs::read_to_string(", 1, RUN),
    ("boot/listeners.rs", "OpenOptions::new(", 1, RUN),
    ("boot/listeners.rs", "chown(", 1, RUN),
    ("boot/listeners.rs", "fs::remove_", 2, RUN),
    ("boot/listeners.rs", "fs::set_permissions(", 1, RUN),
    ("boot/privileged.rs", "OpenOptions::new(", 1, RUN),
    ("boot/privileges.rs", "Command::new(", 1, "this program itself, as ashd"),
    ("boot/privileges.rs", "File::open(", 1, "this program itself"),
    ("boot/stop.rs", "fs::read_to_string(", 1, OF_THE_KERNEL),
    ("boot/stop.rs", "fs::remove_", 1, RUN),
    ("ctl/backup/read.rs", "File::open(", 1, CALLERS),
    ("ctl/backup/read.rs", "SqliteConnectOptions::new(", 1, "a copy in a private directory"),
    ("ctl/backup/read.rs", "fs::read_dir(", 1, OF_THE_KERNEL),
    ("ctl/backup/read.rs", "fs::read_to_string(", 1, OF_THE_KERNEL),
    ("ctl/backup/write.rs", "SqliteConnectOptions::new(", 1, "runs as the owner of the database"),
    ("ctl/backup/write.rs", "fs::open(", 1, "this program itself"),
    ("ctl/evals.rs", "fs::read(", 1, CALLERS),
    ("ctl/first_key.rs", "fs::read_to_string(", 1, OF_THE_KERNEL),
    ("ctl/folder.rs", "File::open(", 1, CALLERS),
    ("ctl/folder.rs", "WalkDir::new(", 1, CALLERS),
    ("ctl/folder.rs", "canonicalize(", 1, CALLERS),
    ("doctor/daemons.rs", "fs::read_to_string(", 2, OF_THE_KERNEL),
    ("doctor/host.rs", "fs::read_to_string(", 3, OF_THE_KERNEL),
    ("doctor/install.rs", "fs::metadata(", 1, "looks at the mode, and changes nothing"),
    ("doctor/install.rs", "fs::read_to_string(", 1, RUN),
    ("doctor/install.rs", "statvfs(", 1, "asks for free space, and changes nothing"),
    ("doctor/live.rs", "Command::new(", 1, "the launcher that the package installed"),
    ("launcher/again.rs", "Command::new(", 1, "the launcher's own program"),
    ("launcher/holding.rs", "fs::metadata(", 1, "asks for the device, and changes nothing"),
    ("launcher/init.rs", "fs::read_to_string(", 1, OF_THE_KERNEL),
    ("launcher/init/payload.rs", "fs::read_to_string(", 1, OF_THE_KERNEL),
    ("launcher/setup/host_etc.rs", "canonicalize(", 1, "/etc and /usr, which are root's"),
    ("launcher/setup/host_etc.rs", "fs::read_dir(", 1, "/etc, which is root's"),
    ("launcher/setup/inside.rs", "DirBuilder::new(", 2, "in the new root, which no other process sees yet"),
    ("launcher/setup/inside.rs", "File::options(", 3, "in the new root, which no other process sees yet"),
    ("launcher/setup/inside.rs", "fs::open(", 1, "in the new root, which no other process sees yet"),
    ("launcher/setup/inside.rs", "fs::symlink(", 2, "in the new root, which no other process sees yet"),
    ("launcher/setup/inside.rs", "fs::write(", 1, OF_THE_KERNEL),
    ("launcher/setup/inside.rs", "symlink_metadata(", 1, "in the new root, which no other process sees yet"),
    ("launcher/setup/proc.rs", "DirBuilder::new(", 1, "in the new root, which no other process sees yet"),
    ("launcher/setup/proc.rs", "File::options(", 1, "in the new root, which no other process sees yet"),
    ("launcher/setup/proc.rs", "fs::read_dir(", 1, "in the new root, which no other process sees yet"),
    ("launcher/setup/proc.rs", "fs::read_to_string(", 1, OF_THE_KERNEL),
    ("launcher/setup/proc.rs", "fs::write(", 1, "in the new root, which no other process sees yet"),
    ("launcher/setup/proc.rs", "symlink_metadata(", 1, "in the new root, which no other process sees yet"),
    ("launcher/setup/trees.rs", "fs::read_link(", 1, "/bin, /lib and their like, which are root's"),
    ("launcher/setup/trees.rs", "symlink_metadata(", 1, "/bin, /lib and their like, which are root's"),
    ("launcher/setup/view.rs", "CWD", 1, "asks for the mount, and changes nothing"),
    (
        "launcher/setup/view.rs",
        "canonicalize(",
        1,
        "finds what is opened then beneath the read-only view; another file of a sandbox's tree is compared",
    ),
    ("launcher/setup/view.rs", "fs::read(", 1, OF_THE_KERNEL),
    ("launcher/uids.rs", "CWD", 3, "/run/ash-uids, which is root's like /run; what is below is reached by descriptor"),
];

fn source(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a source directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            source(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") && !path.to_string_lossy().ends_with("_tests.rs") {
            found.push(path);
        }
    }
}

/// The source without comments, and without the tests at its end.
fn product(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
    text[..end].lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// How often each call occurs in the text, as a whole word.
fn calls(text: &str) -> BTreeMap<&'static str, usize> {
    let mut found = BTreeMap::new();
    for name in BY_PATH {
        let starts = text.match_indices(name).filter(|(at, _)| {
            let before = text[..*at].chars().next_back().unwrap_or(' ');
            let own = name.starts_with("fs::") || !matches!(before, 'a'..='z' | 'A'..='Z' | '0'..='9' | '_');
            // `std::fs` and `rustix::fs` are not distinguished: both take paths.
            let after = text[at + name.len()..].chars().next().unwrap_or(' ');
            let whole = name.starts_with("fs::create_dir") || name.ends_with(['(', '_']) || !after.is_alphanumeric();
            own && whole
        });
        let number = starts.count();
        if number > 0 {
            found.insert(*name, number);
        }
    }
    found
}

fn unlisted(file: &str, text: &str) -> Vec<String> {
    let allowed = |call: &str| {
        ALLOWED.iter().find(|(name, what, ..)| *name == file && *what == call).map_or(0, |(_, _, most, _)| *most)
    };
    let found = calls(&product(text)).into_iter().filter(|(call, number)| *number > allowed(call));
    found.map(|(call, number)| format!("{file}: {number} of {call} (listed: {})", allowed(call))).collect()
}

#[test]
fn root_uses_no_path_that_is_not_listed() {
    let mut wrong = Vec::new();
    for module in PRIVILEGED {
        let (dir, mut files) = (directory(module), Vec::new());
        source(&dir, &mut files);
        assert!(!files.is_empty(), "no file in {}", dir.display());
        for path in &files {
            let file = Path::new(module).join(path.strip_prefix(&dir).expect("below it"));
            wrong.extend(unlisted(&file.to_string_lossy(), &fs::read_to_string(path).expect("a source file")));
        }
    }
    assert!(
        wrong.is_empty(),
        "calls that root makes by path. Use kernel::tree (or trusted, beneath, private), or list the call in tests/root_paths.rs with the \
         reason why no other user can exchange what it finds:\n{}",
        wrong.join("\n")
    );
    for (file, call, ..) in ALLOWED {
        let (module, rest) = file.split_once('/').expect("<module>/<file>");
        let text = fs::read_to_string(directory(module).join(rest)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(calls(&product(&text)).contains_key(call), "{file} has no {call} any more: take it off the list");
    }
}

#[test]
fn this_scan_sees_what_it_should() {
    for (text, found) in [
        ("std::fs::write(path, text)?;", true),
        ("fs::File::create(&path)", true),
        ("let f = OpenOptions::new();", true),
        ("chown(&dir, Some(1), None)?", true),
        ("std::os::unix::fs::lchown(p, None, None)", true),
        ("openat(CWD, path, flags, mode)", true),
        ("std::fs::create_dir_all(&dir)?", true),
        ("std::fs::remove_dir_all(&dir)", true),
        ("fchown(&file, None, None)?", false),
        ("// std::fs::write(path)", false),
        ("tree.create_file(name)", false),
        ("x();\n#[cfg(test)]\nmod tests { fn a() { std::fs::write(p, t) } }", false),
    ] {
        assert_eq!(!unlisted("ctl/new.rs", text).is_empty(), found, "{text}");
    }
    let two = "File::open(a); File::open(b)";
    assert!(unlisted("ctl/backup/read.rs", two)[0].contains("2 of File::open( (listed: 1)"));
}

/// The maintainer scripts run as root: they change nothing in ashd's tree except by its removal,
/// which follows no link.
#[test]
fn maintainer_scripts_change_nothing_below_the_data_directory() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let verbs = ["chown", "chmod", "cp", "mv", "ln", "install", "touch", "mkdir", "tee", "cat", ">"];
    for name in ["postinst", "prerm", "postrm"] {
        let text = fs::read_to_string(root.join("packaging/debian").join(name)).expect(name);
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#') && line.contains("/var/lib/ashd"))
        {
            let words: Vec<&str> = line.split_whitespace().collect();
            let wrong: Vec<_> = verbs.iter().filter(|verb| words.contains(*verb)).collect();
            assert!(wrong.is_empty(), "{name}: {line}");
        }
    }
    let tmpfiles = fs::read_to_string(root.join("systemd/ashd.tmpfiles")).expect("tmpfiles");
    for line in tmpfiles.lines().filter(|line| line.contains("/var/lib/ashd")) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(
            (fields[0], fields[1]),
            ("d", "/var/lib/ashd"),
            "only the directory itself, whose parent is root's: {line}"
        );
    }
}
