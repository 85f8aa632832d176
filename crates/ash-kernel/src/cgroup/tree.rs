//! The launcher's part of the cgroup hierarchies: the parent groups of all sandboxes.

use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::{CgroupError, CgroupPaths, Layout, Leaf, ensure_dir, layout, write};
use ash_model::{Limits, TenantId};

/// The launcher's own group on a pure v2 host. A group whose children have controllers cannot
/// contain processes.
const SUPERVISOR: &str = "supervisor";
const TENANTS: &str = "tenants";
/// Enabled one by one, because the kernel refuses a whole line if one is missing.
const V2_CONTROLLERS: [&str; 4] = ["memory", "cpu", "pids", "io"];

/// The roots, one per hierarchy. [`Tree::remove`] removes them.
#[derive(Clone, Debug)]
pub struct Tree {
    root: CgroupPaths,
    /// The limits that this host cannot enforce, as text for the journal.
    pub missing: Vec<String>,
}

impl Tree {
    /// Detects this host's layout and creates the roots. `name` is the group directly below each
    /// mount. It is used if the launcher has no cgroup of its own: on hybrid hosts, or on a pure v2
    /// host with a shared group.
    ///
    /// # Errors
    /// [`CgroupError::Layout`] on an unsupported host, or the directory that could not be created.
    pub fn prepare(name: &str) -> Result<Self, CgroupError> {
        Self::prepare_in(&here()?, name)
    }

    /// [`Tree::prepare`] in a group held by another process (`path` is relative to the mount).
    /// Hybrid hosts have no such group and use [`Tree::prepare`].
    ///
    /// # Errors
    /// As for [`Tree::prepare`], and if there is no such group.
    pub fn prepare_delegated(path: &Path, name: &str) -> Result<Self, CgroupError> {
        let mut found = here()?;
        if let Layout::Unified { mount, own } = &mut found {
            let root = mount.join(path.strip_prefix("/").unwrap_or(path));
            if !root.join("cgroup.procs").exists() {
                let source = io::Error::other("it does not exist: run systemctl start ash-sandboxes.service");
                return Err(CgroupError::io("use", &root, source));
            }
            *own = root.join(SUPERVISOR);
        }
        Self::prepare_in(&found, name)
    }

    /// Prepares this process's own group for sandboxes below it, by moving this process into a
    /// child group. The holder uses it: systemd 252 cannot start a program in a group whose
    /// children have controllers, so sandboxes that outlive the launcher must not be below the
    /// launcher's unit.
    ///
    /// # Errors
    /// As for [`Tree::prepare`].
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

    /// [`Tree::prepare`] with a known layout.
    ///
    /// # Errors
    /// As for [`Tree::prepare`].
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
                    root.io.is_none().then(|| "io: this host has no blkio controller with I/O limits".to_owned());
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

    /// The `io` limits apply to the disk of `dir`. Without this call, or without such a disk, none
    /// are enforced.
    #[must_use]
    pub fn with_disk_of(mut self, dir: &Path) -> Self {
        match super::disk_of(dir) {
            Ok(device) => self.root.io_device = Some(device),
            Err(why) => self.missing.push(format!("io: {why}")),
        }
        self
    }

    pub fn root(&self) -> &CgroupPaths {
        &self.root
    }

    fn tenant(&self, tenant: &TenantId) -> CgroupPaths {
        self.root.join(TENANTS).join(tenant.as_str())
    }

    /// Creates a sandbox's groups and writes its limits. After an error nothing remains.
    ///
    /// # Errors
    /// The step that failed; `AlreadyExists` if a group of that id still contains processes.
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

    /// The groups of a sandbox created earlier, by any launcher. `None` if no hierarchy has one.
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

    /// Every sandbox with a group in any hierarchy, once.
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

    /// Removes a tenant's groups after its last sandbox. While there is one, the kernel refuses,
    /// and nothing happens.
    pub fn forget_tenant(&self, tenant: &TenantId) {
        for dir in self.tenant(tenant).directories() {
            std::fs::remove_dir(dir).ok();
        }
    }

    /// Removes the roots. Groups with sandboxes remain.
    pub fn remove(&self) {
        for dir in self.root.join(TENANTS).directories().into_iter().chain(self.root.directories()) {
            std::fs::remove_dir(dir).ok();
        }
    }
}

/// The limit of pids for all sandboxes together: three quarters of the host's.
fn process_ids() -> Option<u64> {
    let number =
        |name: &str| std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?.trim().parse::<u64>().ok();
    Some(number("pid_max")?.min(number("threads-max")?) / 4 * 3)
}

fn here() -> Result<Layout, CgroupError> {
    let read =
        |path: &str| std::fs::read_to_string(path).map_err(|error| CgroupError::io("read", Path::new(path), error));
    Ok(layout::detect(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?)?)
}

/// The root of the sandboxes on a pure v2 host, and the missing controllers.
fn unified_root(mount: &Path, own: &Path, name: &str) -> Result<(CgroupPaths, Vec<String>), CgroupError> {
    let root = if own.file_name().is_some_and(|last| last == SUPERVISOR) {
        // systemd's DelegateSubgroup=, or a restarted launcher.
        own.parent().unwrap_or(mount).to_owned()
    } else if own.join("cgroup.events").exists() && only_process_in(own)? {
        // A unit with Delegate=yes. Only the hierarchy's root has no cgroup.events.
        let supervisor = own.join(SUPERVISOR);
        ensure_dir(&supervisor)?;
        write(&supervisor.join("cgroup.procs"), "0")?;
        own.to_owned()
    } else {
        // The group is shared with a shell or with ashd and must not be split.
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

/// Enables each controller for the children of `dir`. Returns the enabled ones.
fn enable_at(dir: &Path) -> Vec<&'static str> {
    let file = dir.join("cgroup.subtree_control");
    let on = || -> Vec<&'static str> {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        V2_CONTROLLERS.into_iter().filter(|c| text.split_whitespace().any(|word| word == *c)).collect()
    };
    // Usually all are enabled already. A write takes a global cgroup lock, even without a change.
    let before = on();
    if before.len() == V2_CONTROLLERS.len() {
        return before;
    }
    for controller in V2_CONTROLLERS.into_iter().filter(|c| !before.contains(c)) {
        // A missing controller is detected afterwards.
        write(&file, &format!("+{controller}")).ok();
    }
    on()
}

/// The same below the root. Controllers of the root are required here: a leaf without its limit
/// would go unnoticed.
fn enable(paths: &CgroupPaths) -> Result<(), CgroupError> {
    if paths.v1 {
        return Ok(());
    }
    let on = enable_at(&paths.unified);
    let wanted = [("memory", &paths.memory), ("cpu", &paths.cpu), ("pids", &paths.pids), ("io", &paths.io)];
    match wanted.into_iter().find(|(controller, leg)| leg.is_some() && !on.contains(controller)) {
        Some((controller, _)) => {
            let source = io::Error::other("the kernel did not enable it");
            Err(CgroupError::io(format!("enable {controller} in"), &paths.unified, source))
        }
        None => Ok(()),
    }
}

/// Names of the groups directly below `dir`. Empty if it does not exist.
fn names(dir: &Path) -> Result<Vec<String>, CgroupError> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| CgroupError::io("list", dir, error))?,
    };
    let is_dir = |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    Ok(entries.flatten().filter(is_dir).filter_map(|entry| entry.file_name().into_string().ok()).collect())
}
