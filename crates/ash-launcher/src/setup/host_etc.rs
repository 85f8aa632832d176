//! The host's `/etc` entries shown in a sandbox: those of [`etc::FROM_HOST`] that exist on this
//! host and are safe.

use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::policy::etc;

#[derive(Debug, PartialEq, Eq)]
pub enum Shown {
    File,
    Dir,
    /// A link to something that the sandbox already contains.
    Link(PathBuf),
}

/// The entries below `root` (`/` except in tests): absolute path inside, and how it appears.
pub fn all(root: &Path) -> Vec<(String, Shown)> {
    let mut found = Vec::new();
    for (pattern, _why) in etc::FROM_HOST {
        for path in expand(root, pattern) {
            if let Some(shown) = fit(root, &path)
                && let Ok(inside) = path.strip_prefix(root)
                && let Some(inside) = inside.to_str()
            {
                found.push((format!("/{inside}"), shown));
            }
        }
    }
    found
}

/// The paths that match a pattern, in order. Without a `*` the result is the path itself, even if
/// it does not exist.
fn expand(root: &Path, pattern: &str) -> Vec<PathBuf> {
    let mut paths = vec![root.to_owned()];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        let Some((before, after)) = part.split_once('*') else {
            paths.iter_mut().for_each(|path| path.push(part));
            continue;
        };
        let fits = |name: &[u8]| {
            name.len() >= before.len() + after.len()
                && name.starts_with(before.as_bytes())
                && name.ends_with(after.as_bytes())
        };
        let below = |dir: &PathBuf| {
            let names = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
            let mut names: Vec<_> = names.filter(|name| fits(name.as_bytes())).collect();
            names.sort();
            names.into_iter().map(|name| dir.join(name)).collect::<Vec<_>>()
        };
        paths = paths.iter().flat_map(below).collect();
    }
    paths
}

/// `None`: it does not exist, leads elsewhere, is not root's, or is not readable by everyone. A
/// link appears as its target.
fn fit(root: &Path, path: &Path) -> Option<Shown> {
    let real = path.canonicalize().ok()?;
    let below = |dir: &&str| real.starts_with(root.join(dir.trim_start_matches('/')));
    let meta = real.metadata().ok()?;
    if !etc::LEADS_TO.iter().any(&below) || !public(&meta) {
        return None;
    }
    if below(&etc::THERE) {
        return Some(Shown::Link(Path::new("/").join(real.strip_prefix(root).ok()?)));
    }
    Some(if meta.is_dir() { Shown::Dir } else { Shown::File })
}

fn public(meta: &Metadata) -> bool {
    let everybody = if meta.is_dir() { 0o005 } else { 0o004 };
    let kind = meta.is_dir() || meta.is_file();
    kind && meta.uid() == 0 && meta.mode() & everybody == everybody && meta.mode() & 0o022 == 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    #[test]
    fn what_the_host_has_and_everybody_may_read() {
        let host = tempfile::tempdir().unwrap();
        let root = host.path().canonicalize().unwrap();
        let at = |path: &str| root.join(path);
        for dir in [
            "etc/java-17-openjdk",
            "etc/java-21-openjdk",
            "etc/java-common",
            "etc/php/8.2/cli/conf.d",
            "usr/lib",
            "var",
        ] {
            std::fs::create_dir_all(at(dir)).unwrap();
        }
        for file in [
            "etc/services",
            "usr/lib/os-release",
            "etc/timezone",
            "etc/mime.types",
            "etc/protocols",
            "var/x",
            "etc/shadow",
        ] {
            std::fs::write(at(file), "x").unwrap();
        }
        symlink("../usr/lib/os-release", at("etc/os-release")).unwrap();
        symlink("../var/x", at("etc/debian_version")).unwrap();
        symlink("/nowhere", at("etc/localtime")).unwrap();
        // Of another user, or not readable by everyone.
        chown(at("etc/mime.types"), Some(1000), None).unwrap();
        std::fs::set_permissions(at("etc/timezone"), PermissionsExt::from_mode(0o640)).unwrap();
        std::fs::set_permissions(at("etc/protocols"), PermissionsExt::from_mode(0o666)).unwrap();
        std::fs::set_permissions(at("etc/java-21-openjdk"), PermissionsExt::from_mode(0o750)).unwrap();
        let wanted = [
            ("/etc/services".to_owned(), Shown::File),
            ("/etc/os-release".to_owned(), Shown::Link("/usr/lib/os-release".into())),
            ("/etc/java-17-openjdk".to_owned(), Shown::Dir),
            ("/etc/php/8.2/cli/conf.d".to_owned(), Shown::Dir),
        ];
        assert_eq!(all(&root), wanted);
    }

    #[test]
    fn no_entry_can_be_a_secret_of_the_host() {
        for secret in [
            "/etc/shadow",
            "/etc/gshadow",
            "/etc/ssh",
            "/etc/ssl/private",
            "/etc/machine-id",
            "/etc/ashd",
            "/etc/sudoers",
        ] {
            for (pattern, _) in etc::FROM_HOST {
                let fits = expand(Path::new("/"), pattern).iter().any(|path| Path::new(secret).starts_with(path));
                assert!(!fits, "{pattern} shows {secret}");
            }
        }
    }
}
