//! The shape of the crate, checked on its source: dependencies go one way, unsafe code stays in `crates/ash-kernel/src`, and no
//! file grows past what can be read at once.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of the longest file.
const MAX_LINES: usize = 400;

/// What each module may use besides itself. `http -> sessions -> pool -> sandbox -> kernel`; the rest stands beside.
const MAY_USE: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("systemd", &[]),
    ("ctl", &["model", "kernel", "archive"]),
    ("config", &["model"]),
    ("observe", &["model", "config"]),
    ("store", &["model", "config", "observe"]),
    ("vault", &["model", "config"]),
    ("kernel", &["model"]),
    ("archive", &["model", "kernel"]),
    ("confine", &["kernel"]),
    ("gateway", &["model", "config", "confine", "kernel", "observe"]),
    ("launcher", &["model", "config", "confine", "kernel", "systemd", "observe"]),
    ("sandbox", &["model", "config", "kernel", "launcher", "observe"]),
    ("doctor", &["model", "config", "confine", "kernel", "launcher", "sandbox"]),
    ("pool", &["model", "config", "kernel", "launcher", "sandbox", "gateway", "store", "observe"]),
    ("sessions", &["model", "config", "kernel", "launcher", "sandbox", "gateway", "store", "observe", "pool", "vault"]),
    ("http", &["model", "config", "kernel", "archive", "store", "observe", "sessions"]),
];

/// Puts everything together, so it may use everything.
const TOP: [&str; 1] = ["boot"];

fn rust_files(dir: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten() {
            let path = entry.expect("an entry of the source tree").path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The source without comments and without the text of strings, so that words in them do not count.
fn code(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out = String::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &source[at..];
        if rest.starts_with("//") {
            at += rest.find('\n').unwrap_or(rest.len());
        } else if rest.starts_with("/*") {
            at += rest.find("*/").map_or(rest.len(), |end| end + 2);
        } else if let Some(hashes) = raw_string(rest) {
            let close = format!("\"{}", "#".repeat(hashes));
            let open = hashes + 2;
            at += open + rest[open..].find(&close).map_or(rest.len() - open, |end| end + close.len());
        } else if rest.starts_with('"') {
            let mut end = 1;
            while end < rest.len() && bytes[at + end] != b'"' {
                end += if bytes[at + end] == b'\\' { 2 } else { 1 };
            }
            at += (end + 1).min(rest.len());
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\\"'") {
            at += rest[1..].find('\'').map_or(1, |end| end + 2);
        } else {
            let next = rest.chars().next().expect("not at the end");
            out.push(next);
            at += next.len_utf8();
        }
        while at < bytes.len() && !source.is_char_boundary(at) {
            at += 1;
        }
    }
    out
}

fn raw_string(rest: &str) -> Option<usize> {
    let after = rest.strip_prefix('r')?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..].starts_with('"').then_some(hashes)
}

/// The first names of all paths that begin with `crate::`, groups in braces included.
fn crate_paths(code: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            names.insert(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
            continue;
        };
        let (mut depth, mut name) = (0, String::new());
        for c in group.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    names.insert(std::mem::take(&mut name));
                }
                _ if depth == 0 => name.push(c),
                _ => {}
            }
        }
        names.insert(name);
    }
    let first = |name: String| name.trim().split("::").next().unwrap_or_default().to_owned();
    names.into_iter().map(first).filter(|name| !name.is_empty()).collect()
}

/// The module a file of `src/` belongs to; `None` for the crate's roots.
fn module_of(path: &Path) -> Option<String> {
    let inside = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).ok()?;
    let first = inside.components().next()?.as_os_str().to_str()?;
    let name = first.strip_suffix(".rs").unwrap_or(first);
    (!["main", "lib", "bin"].contains(&name)).then(|| name.to_owned())
}

/// What a module uses and may not.
fn forbidden(module: &str, code: &str, modules: &BTreeSet<String>) -> Vec<String> {
    if TOP.contains(&module) {
        return Vec::new();
    }
    let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == module) else {
        return vec![format!("the module \"{module}\" has no line in MAY_USE of tests/layers.rs")];
    };
    crate_paths(code)
        .into_iter()
        .filter(|used| modules.contains(used) && used != module && !allowed.contains(&used.as_str()))
        .map(|used| format!("{module} must not use {used}"))
        .collect()
}

#[test]
fn dependencies_go_one_way() {
    let files = rust_files("src");
    let modules: BTreeSet<String> = files.iter().filter_map(|f| module_of(f)).collect();
    assert!(modules.len() > 10, "only {modules:?} found");
    let mut wrong = Vec::new();
    for file in &files {
        let Some(module) = module_of(file) else { continue };
        let text = fs::read_to_string(file).expect("a source file can be read");
        wrong
            .extend(forbidden(&module, &code(&text), &modules).into_iter().map(|w| format!("{}: {w}", file.display())));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_code_stays_in_the_kernel_module() {
    let mut wrong = Vec::new();
    for file in ["src", "tests", "benches", "examples"].iter().flat_map(|d| rust_files(d)) {
        let text = fs::read_to_string(&file).expect("a source file can be read");
        let code = code(&text);
        let words = code.split(|c: char| !(c.is_alphanumeric() || c == '_'));
        let found = words.filter(|w| ["unsafe", "unsafe_code"].contains(w)).count();
        // A test that attacks the sandbox may need raw system calls; the product keeps them in one place.
        let kernel = module_of(&file).is_some_and(|m| m == "kernel")
            || file.to_string_lossy().starts_with(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernel"));
        if found > 0 && !kernel {
            wrong.push(format!("{}: {found} times", file.display()));
        }
        if found > 0 && !text.contains("SAFETY:") && code.contains("unsafe {") {
            wrong.push(format!("{}: no SAFETY note", file.display()));
        }
    }
    assert!(wrong.is_empty(), "unsafe outside src/kernel:\n{}", wrong.join("\n"));
}

#[test]
fn no_file_is_too_long() {
    let mut wrong = Vec::new();
    for file in ["src", "tests", "benches"].iter().flat_map(|d| rust_files(d)) {
        let lines = fs::read_to_string(&file).expect("a source file can be read").lines().count();
        if lines > MAX_LINES {
            wrong.push(format!("{}: {lines} lines, at most {MAX_LINES}: split it by meaning", file.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn this_check_sees_what_it_should() {
    let modules: BTreeSet<String> = ["http", "store", "kernel", "sessions"].map(str::to_owned).into();
    let up = "use crate::{store::{Row, Col}, http};\n// crate::kernel\nlet s = \"crate::kernel\";";
    assert_eq!(crate_paths(&code(up)), ["http", "store"].map(str::to_owned).into());
    assert_eq!(forbidden("sessions", &code(up), &modules), ["sessions must not use http"]);
    assert_eq!(forbidden("kernel", "crate::sessions::api::X", &modules), ["kernel must not use sessions"]);
    assert!(forbidden("http", "use crate::sessions::Sessions;", &modules).is_empty());
    assert!(!forbidden("novel", "", &modules).is_empty());
    assert!(code("let q = '\"'; unsafe {}").contains("unsafe"));
    assert!(!code("r#\"unsafe \" \"# // unsafe\n /* unsafe */").contains("unsafe"));
}

/// The threat model is worth what its tests are: each one it names must be there.
#[test]
fn the_threat_model_names_tests_that_exist() {
    names_tests_that_exist("docs/threat-model.md");
}

#[test]
fn the_page_of_confinement_names_tests_that_exist() {
    names_tests_that_exist("docs/confinement.md");
}

#[test]
fn the_page_of_survival_names_tests_that_exist() {
    names_tests_that_exist("docs/survival.md");
}

#[test]
fn the_page_of_neighbours_names_tests_that_exist() {
    assert!(tests_named_in("docs/neighbours.md") >= 10);
}

fn names_tests_that_exist(page: &str) {
    let named = tests_named_in(page);
    assert!(named > 30, "only {named} tests are named");
}

/// How many; each of them is there.
fn tests_named_in(page: &str) -> usize {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join(page)).expect(page);
    // A name of four words or more, in backquotes, is one of a test.
    let quoted = text.split('`').skip(1).step_by(2);
    let words = quoted.flat_map(|part| part.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')));
    let named: BTreeSet<&str> = words.filter(|word| word.matches('_').count() >= 3).collect();
    let sources: Vec<String> = ["src", "tests"]
        .iter()
        .flat_map(|dir| rust_files(dir))
        .map(|file| fs::read_to_string(file).expect("a source file can be read"))
        .collect();
    let missing: Vec<&&str> =
        named.iter().filter(|name| !sources.iter().any(|source| source.contains(&format!("fn {name}(")))).collect();
    assert!(missing.is_empty(), "{page} names tests that are not there: {missing:?}");
    named.len()
}

/// Where tasks or threads are started that `observe::tasks` does not watch, and how many. Each was judged: what is started ends by itself, whoever waits for it learns of a panic (a join
/// error, a dropped reply), and a guard gives back what it holds. An endless loop does not belong here: it takes `spawn_restarting` or `spawn_essential`.
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
    ("src/http/idempotency.rs", 1),
    ("src/http/tenants.rs", 1),
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
    ("src/sessions/api/service.rs", 1),
    ("src/sessions/context.rs", 1),
    ("src/sessions/api/storage_limit.rs", 1),
    ("src/sessions/monitor/resource_monitor.rs", 1),
];

#[test]
fn tasks_are_supervised_or_judged() {
    const STARTS: [&str; 5] = ["tokio::spawn(", "thread::spawn(", "thread::Builder", "tasks.spawn(", "servers.spawn("];
    let mut found = Vec::new();
    for path in rust_files("src") {
        let name = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).expect("below it").to_string_lossy().into_owned();
        let is_test = path.file_name().is_some_and(|name| {
            name.to_string_lossy().ends_with("_tests.rs") || name.to_string_lossy().starts_with("tests")
        });
        if is_test || name == "crates/ash-observe/src/tasks.rs" {
            continue;
        }
        let source = fs::read_to_string(&path).expect("a source file");
        let product = source.find("#[cfg(test)]\nmod ").map_or(source.as_str(), |at| &source[..at]);
        let code = code(product);
        let count: usize = STARTS.iter().map(|start| code.matches(start).count()).sum();
        if count > 0 {
            found.push((name, count));
        }
    }
    let listed: Vec<(String, usize)> = UNWATCHED.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    assert_eq!(found, listed, "judge what is new: does a panic in it leave something stuck? See UNWATCHED");
}
