//! The directories, created as root before privileges are dropped.
//!
//! | directory | owner | mode | why |
//! |---|---|---|---|
//! | data | ashd | 0750 | no one else reads sessions, agents and the database |
//! | state of the gateway | ash-gateway | 0700 | ashd must not change the ledger of usage |
//! | run | root | 0755 | the launcher works there as root, so no one else may create links there |

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::BootError;
use super::users::Account;
use ash_kernel::beneath::Refused;
use ash_kernel::tree::{Owner, Tree};

/// Entries of a data directory. A directory of root with other entries belongs to someone else and
/// is refused.
const KNOWN: [&str; 6] = ["agents", "attachments", "claude", "credential-key", "initial-api-key", "sessions"];

pub(super) fn prepare(data: &Path, run: &Path, ashd: &Account) -> Result<(), BootError> {
    prepare_data(data, ashd)?;
    prepare_run(run)?;
    reachable(data, ashd)?;
    reachable(run, ashd)
}

/// Prepares the parents of the gateway's state directory. The gateway creates the directory itself
/// while it is root and gives it to its user, by descriptor: an exchanged path gives nothing away.
pub(super) fn prepare_state(state: &Path, gateway: &Account) -> Result<(), BootError> {
    if let Some(parent) = state.parent() {
        let named = || format!("state directory of the gateway {}", state.display());
        Tree::make_within(parent).map_err(|why| BootError::io(named())(why.into()))?;
    }
    reachable(state, gateway)
}

fn prepare_data(data: &Path, ashd: &Account) -> Result<(), BootError> {
    let named = || format!("data directory {}", data.display());
    let tree = make(data, 0o750).map_err(BootError::io(named()))?;
    let owner = tree.owner().uid;
    if owner == ashd.uid {
        return Ok(());
    }
    if owner != 0 {
        return Err(BootError::Refused(format!(
            "{}: belongs to uid {owner}, but ashd runs as {} (uid {}); to fix it: `chown -R {}:{} {}`",
            named(),
            ashd.name,
            ashd.uid,
            ashd.uid,
            ashd.gid,
            data.display()
        )));
    }
    for name in tree.names().map_err(|refused| BootError::io(named())(refused.into()))? {
        // A separate file system contains `lost+found`.
        let ours = name
            .to_str()
            .is_some_and(|name| KNOWN.contains(&name) || name.starts_with("ashd.") || name == "lost+found");
        if !ours {
            return Err(BootError::Refused(format!(
                "{}: contains {}, which does not belong to ashd; choose another directory (ASH_DATA_DIR)",
                named(),
                name.display()
            )));
        }
    }
    let given = tree.set_mode(".", 0o750).and_then(|()| tree.give_to(Owner { uid: ashd.uid, gid: ashd.gid }));
    given.map_err(|refused| BootError::io(named())(refused.into()))
}

fn prepare_run(run: &Path) -> Result<(), BootError> {
    let named = || format!("run directory {}", run.display());
    make(run, 0o755).map_err(BootError::io(named()))?;
    Tree::open_trusted(run).map(drop).map_err(|why| {
        BootError::Refused(format!(
            "{}: must be a directory of root that no other user can write, because the launcher works in it as root: {why}; \
             remove it, or choose another one (ASH_RUN_DIR)",
            named()
        ))
    })
}

/// Creates a directory with exactly this mode; missing parents get 0755. Keeps an existing one. Its
/// parents must belong to root.
fn make(path: &Path, mode: u32) -> std::io::Result<Tree> {
    match Tree::open(path) {
        Err(why) if why.is_missing() => {}
        other => return Ok(other?),
    }
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { return Ok(Tree::open(path)?) };
    let above = Tree::make_within(above)?;
    match above.make_dir(name, mode, None) {
        Ok(made) => Ok(made),
        // Another start created it.
        Err(Refused::Io(error)) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(Tree::open(path)?),
        Err(refused) => Err(refused.into()),
    }
}

/// Checks that every parent lets the unprivileged user through. A data directory below /root would
/// otherwise fail later, with a less clear error.
fn reachable(path: &Path, user: &Account) -> Result<(), BootError> {
    for above in path.ancestors().skip(1) {
        let found = fs::metadata(above).map_err(BootError::io(above.display().to_string()))?;
        if !may_pass(found.mode(), found.uid() == user.uid, found.gid() == user.gid) {
            return Err(BootError::Refused(format!(
                "{} cannot be reached by user {}: {} has mode {:o}; choose another place (ASH_DATA_DIR, ASH_RUN_DIR), or \
                 `chmod o+x {}`",
                path.display(),
                user.name,
                above.display(),
                found.mode() & 0o7777,
                above.display()
            )));
        }
    }
    Ok(())
}

/// The kernel's rule: the first matching class decides.
fn may_pass(mode: u32, owner: bool, group: bool) -> bool {
    let bit = if owner {
        0o100
    } else if group {
        0o010
    } else {
        0o001
    };
    mode & bit != 0
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const NOBODY: u32 = 65_534;

    fn account() -> Account {
        Account { name: "nobody".to_owned(), uid: NOBODY, gid: NOBODY }
    }

    #[test]
    fn directories_are_made_and_those_of_others_are_refused() {
        let top = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir().unwrap();
        let (data, run) = (top.path().join("a/data"), top.path().join("b/run"));
        prepare(&data, &run, &account()).unwrap();
        prepare(&data, &run, &account()).unwrap();
        let is = |path: &Path| fs::metadata(path).map(|m| (m.uid(), m.mode() & 0o7777)).unwrap();
        assert_eq!((is(&data), is(&run)), ((NOBODY, 0o750), (0, 0o755)));

        let foreign = top.path().join("foreign");
        fs::create_dir(&foreign).unwrap();
        fs::write(foreign.join("letter"), "").unwrap();
        let error = prepare(&foreign, &run, &account()).unwrap_err().to_string();
        assert!(error.contains("letter") && is(&foreign).0 == 0, "{error}");

        let installed = top.path().join("installed");
        fs::create_dir_all(installed.join("claude/2.1.330")).unwrap();
        prepare(&installed, &run, &account()).unwrap();
        assert_eq!(is(&installed).0, NOBODY);

        fs::set_permissions(&run, Permissions::from_mode(0o777)).unwrap();
        assert!(prepare(&data, &run, &account()).unwrap_err().to_string().contains("777"));
        fs::set_permissions(&run, Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(data.parent().unwrap(), Permissions::from_mode(0o700)).unwrap();
        let error = prepare(&data, &run, &account()).unwrap_err().to_string();
        assert!(error.contains("cannot be reached by user nobody") && error.contains("700"), "{error}");
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        for (mode, owner, group, expected) in [
            (0o755, false, false, true),
            (0o750, false, false, false),
            (0o750, false, true, true),
            (0o700, true, false, true),
            (0o077, true, true, false),
            (0o701, false, true, false),
        ] {
            assert_eq!(may_pass(mode, owner, group), expected, "{mode:o}");
        }
    }
}
