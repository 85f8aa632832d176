//! The launcher's part of the cgroup hierarchies: the groups all sandboxes are below.

use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::{CgroupError, CgroupPaths, Layout, Leaf, ensure_dir, layout, write};
use ash_model::{Limits, TenantId};

/// The group the launcher itself sits in on a pure v2 host, since a group with children that have controllers holds
/// no processes.
const SUPERVISOR: &str = "supervisor";
const TENANTS: &str = "tenants";
/// Each may be missing, so they are enabled one at a time: the kernel refuses a line as a whole.
const V2_CONTROLLERS: [&str; 4] = ["memory", "cpu", "pids", "io"];

/// The roots, one for each hierarchy. Undone by [`Tree::remove`].
#[derive(Clone, Debug)]
pub struct Tree {
    root: CgroupPaths,
    /// What the host cannot enforce, in words for the journal.
    pub missing: Vec<String>,
}

impl Tree {
    /// Reads this host's layout and makes the roots. `name` is that of the group directly below each mount, used where
    /// the launcher has no cgroup of its own (hybrid hosts, or a pure v2 host where it shares its group).
    ///
    /// # Errors
    /// [`CgroupError::Layout`] on a host that cannot do it, or the directory that could not be made.
    pub fn prepare(name: &str) -> Result<Self, CgroupError> {
        Self::prepare_in(&here()?, name)
    }

    /// [`Tree::prepare`] in a group that another process holds (`path` is that below the mount). Hybrid hosts have no such
    /// group; there it is [`Tree::prepare`].
    ///
    /// # Errors
    /// As above; and when there is no such group.
    pub fn prepare_delegated(path: &Path, name: &str) -> Result<Self, CgroupError> {
        let mut found = here()?;
        if let Layout::Unified { mount, own } = &mut found {
            let root = mount.join(path.strip_prefix("/").unwrap_or(path));
            if !root.join("cgroup.procs").exists() {
                let source = io::Error::other("it is not there; systemctl start ash-sandboxes.service");
                return Err(CgroupError::io("use", &root, source));
            }
            *own = root.join(SUPERVISOR);
        }
        Self::prepare_in(&found, name)
    }

    /// Makes this process's own group one that sandboxes can be below, by sitting in a group of its own there. For the
    /// process that holds it: systemd 252 cannot start a program in a group whose children have controllers, so sandboxes
    /// that outlive the launcher must not be below the launcher's unit.
    ///
    /// # Errors
    /// As above.
    pub fn hold() -> Result<(), CgroupError> {
        match here()? {
            Layout::Unified { own, .. } if own.file_name().is_none_or(|last| last != SUPERVISOR) => {
                let supervisor = own.join(SUPERVISOR);
                ensure_dir(&supervisor)?;
                write(&supervisor.join("cgroup.procs"), "0")
            }
            _ => Ok(()),
        }
    }

    /// [`Tree::prepare`] with a layout that is known.
    ///
    /// # Errors
    /// As above.
    pub fn prepare_in(found: &Layout, name: &str) -> Result<Self, CgroupError> {
        let (root, missing) = match found {
            Layout::Unified { mount, own } => unified_root(mount, own, name)?,
            Layout::Hybrid { unified, memory, cpu, pids, blkio } => {
                let below = |mount: &Option<PathBuf>| mount.as_ref().map(|mount| mount.join(name));
                let root = CgroupPaths {
                    unified: unified.join(name),
                    memory: below(memory),
                    cpu: below(cpu),
                    pids: below(pids),
                    io: below(&blkio.clone().filter(|mount| mount.join(super::limits::V1_IO[0]).exists())),
                    io_device: None,
                    v1: true,
                };
                let missing =
                    root.io.is_none().then(|| "io: the host has no blkio controller that throttles".to_owned());
                (root, missing.into_iter().collect())
            }
        };
        let mut tree = Self { root, missing };
        for dir in tree.root.directories() {
            ensure_dir(dir)?;
            ensure_dir(&dir.join(TENANTS))?;
        }
        enable(&tree.root.join(TENANTS))?;
        if let Some(dir) = tree.root.join(TENANTS).pids
            && let Some(most) = process_ids()
            && let Err(error) = write(&dir.join("pids.max"), &most.to_string())
        {
            tree.missing.push(format!("pids of all sandboxes together: {error}"));
        }
        Ok(tree)
    }

    /// Limits of `io` are those of the disk that holds `dir`. Without this call, or where there is no such disk, none are
    /// enforced.
    #[must_use]
    pub fn with_disk_of(mut self, dir: &Path) -> Self {
        match super::disk_of(dir) {
            Ok(device) => self.root.io_device = Some(device),
            Err(why) => self.missing.push(format!("io: {why}")),
        }
        self
    }

    /// The roots' directories.
    pub fn root(&self) -> &CgroupPaths {
        &self.root
    }

    fn tenant(&self, tenant: &TenantId) -> CgroupPaths {
        self.root.join(TENANTS).join(tenant.as_str())
    }

    /// Makes a sandbox's groups and writes its limits. On an error nothing is left.
    ///
    /// # Errors
    /// The step that failed; `AlreadyExists` when a group of that id still holds processes.
    pub fn create(&self, tenant: &TenantId, id: Uuid, limits: &Limits) -> Result<Leaf, CgroupError> {
        super::limits::values(limits)?;
        let above = self.tenant(tenant);
        for dir in above.directories() {
            ensure_dir(dir)?;
        }
        enable(&above)?;
        let leaf = Leaf::create(above.join(&id.to_string()))?;
        match super::limits::apply(leaf.paths(), limits) {
            Ok(_) => Ok(leaf),
            Err(error) => {
                leaf.remove().ok();
                self.forget_tenant(tenant);
                Err(error)
            }
        }
    }

    /// The groups of a sandbox that was made earlier, by whichever launcher. `None` when no hierarchy has any.
    ///
    /// # Errors
    /// A hierarchy that cannot be read.
    pub fn find(&self, id: Uuid) -> Result<Option<(TenantId, Leaf)>, CgroupError> {
        let name = id.to_string();
        for (tenant, found) in self.leaves()? {
            if found == id {
                return Leaf::open(self.tenant(&tenant).join(&name)).map(|leaf| Some((tenant, leaf)));
            }
        }
        Ok(None)
    }

    /// Every sandbox that has a group in any hierarchy, once.
    ///
    /// # Errors
    /// A hierarchy that cannot be read.
    pub fn leaves(&self) -> Result<Vec<(TenantId, Uuid)>, CgroupError> {
        let mut all = Vec::new();
        for root in self.root.directories() {
            let tenants = root.join(TENANTS);
            for tenant in names(&tenants)? {
                let Ok(id) = tenant.parse::<TenantId>() else { continue };
                let leaves = names(&tenants.join(tenant))?;
                all.extend(leaves.iter().filter_map(|leaf| Some((id.clone(), leaf.parse().ok()?))));
            }
        }
        all.sort();
        all.dedup();
        Ok(all)
    }

    /// Removes a tenant's groups when its last sandbox is gone; while one is left the kernel refuses, which is fine.
    pub fn forget_tenant(&self, tenant: &TenantId) {
        for dir in self.tenant(tenant).directories() {
            std::fs::remove_dir(dir).ok();
        }
    }

    /// Removes the roots. What still has a sandbox stays.
    pub fn remove(&self) {
        for dir in self.root.join(TENANTS).directories().into_iter().chain(self.root.directories()) {
            std::fs::remove_dir(dir).ok();
        }
    }
}

/// What all sandboxes together may have of the host's process ids and threads: three quarters. Each takes one of the host's own.
fn process_ids() -> Option<u64> {
    let number =
        |name: &str| std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?.trim().parse::<u64>().ok();
    Some(number("pid_max")?.min(number("threads-max")?) / 4 * 3)
}

/// This host's layout.
fn here() -> Result<Layout, CgroupError> {
    let read =
        |path: &str| std::fs::read_to_string(path).map_err(|error| CgroupError::io("read", Path::new(path), error));
    Ok(layout::detect(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?)?)
}

/// Where the sandboxes go on a pure v2 host, with what is missing there.
fn unified_root(mount: &Path, own: &Path, name: &str) -> Result<(CgroupPaths, Vec<String>), CgroupError> {
    let root = if own.file_name().is_some_and(|last| last == SUPERVISOR) {
        // systemd's DelegateSubgroup=, or a launcher that was restarted.
        own.parent().unwrap_or(mount).to_owned()
    } else if own.join("cgroup.events").exists() && only_process_in(own)? {
        // A unit with Delegate=yes. Only the hierarchy's root has no cgroup.events.
        let supervisor = own.join(SUPERVISOR);
        ensure_dir(&supervisor)?;
        write(&supervisor.join("cgroup.procs"), "0")?;
        own.to_owned()
    } else {
        // The group is shared with a shell or with ashd, and is not ours to split.
        enable_at(mount);
        let root = mount.join(name);
        ensure_dir(&root)?;
        root
    };
    let enabled = enable_at(&root);
    let leg = |controller: &str| enabled.contains(&controller).then(|| root.clone());
    let missing = V2_CONTROLLERS.iter().filter(|c| !enabled.contains(c));
    let missing = missing.map(|c| format!("{c}: not available below {} (is it delegated?)", root.display())).collect();
    let paths = CgroupPaths {
        memory: leg("memory"),
        cpu: leg("cpu"),
        pids: leg("pids"),
        io: leg("io"),
        io_device: None,
        v1: false,
        unified: root,
    };
    Ok((paths, missing))
}

fn only_process_in(dir: &Path) -> Result<bool, CgroupError> {
    let procs = dir.join("cgroup.procs");
    let text = std::fs::read_to_string(&procs).map_err(|error| CgroupError::io("read", &procs, error))?;
    let own = std::process::id().to_string();
    Ok(text.lines().all(|pid| pid == own))
}

/// Enables each controller for the children of `dir`; answers which ones are on.
fn enable_at(dir: &Path) -> Vec<&'static str> {
    let file = dir.join("cgroup.subtree_control");
    let on = || -> Vec<&'static str> {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        V2_CONTROLLERS.into_iter().filter(|c| text.split_whitespace().any(|word| word == *c)).collect()
    };
    // At most starts all are on already. A write takes a lock of all cgroups, even when it changes nothing.
    let before = on();
    if before.len() == V2_CONTROLLERS.len() {
        return before;
    }
    for controller in V2_CONTROLLERS.into_iter().filter(|c| !before.contains(c)) {
        // A missing controller is told by what is on afterwards.
        write(&file, &format!("+{controller}")).ok();
    }
    on()
}

/// The same below the root, where what the root has must also be: a leaf without its limit would be silent.
fn enable(paths: &CgroupPaths) -> Result<(), CgroupError> {
    if paths.v1 {
        return Ok(());
    }
    let on = enable_at(&paths.unified);
    let wanted = [("memory", &paths.memory), ("cpu", &paths.cpu), ("pids", &paths.pids), ("io", &paths.io)];
    match wanted.into_iter().find(|(controller, leg)| leg.is_some() && !on.contains(controller)) {
        Some((controller, _)) => {
            let source = io::Error::other("the kernel did not take it");
            Err(CgroupError::io(format!("enable {controller} in"), &paths.unified, source))
        }
        None => Ok(()),
    }
}

/// Names of the groups directly below `dir`; none when it does not exist.
fn names(dir: &Path) -> Result<Vec<String>, CgroupError> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| CgroupError::io("list", dir, error))?,
    };
    let is_dir = |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    Ok(entries.flatten().filter(is_dir).filter_map(|entry| entry.file_name().into_string().ok()).collect())
}
