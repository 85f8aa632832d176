//! Callers on the unix socket. The kernel identifies them (SO_PEERCRED, unix(7)), so they need no
//! key.
//!
//! The socket's mode admits only root and ashd's group. This checks each connection as well,
//! because a mode can be changed by mistake.

use std::ffi::CString;

use nix::unistd::{Gid, Uid, User, getegid, geteuid, getgrouplist};
/// The peer of a connection to the unix socket.
#[derive(Clone, Copy, Debug)]
pub struct LocalPeer {
    /// root, ashd itself, or a member of ashd's group.
    pub admin: bool,
}

impl LocalPeer {
    /// Identifies a peer by the ids from the kernel.
    pub fn of(uid: u32, gid: u32) -> Self {
        Self { admin: is_admin(Uid::from_raw(uid), Gid::from_raw(gid), geteuid(), getegid(), groups_of) }
    }
}

fn is_admin(uid: Uid, gid: Gid, own: Uid, group: Gid, groups: impl Fn(Uid, Gid) -> Vec<Gid>) -> bool {
    uid.is_root() || uid == own || gid == group || groups(uid, gid).contains(&group)
}

/// All groups of a user, from the system's user database.
fn groups_of(uid: Uid, gid: Gid) -> Vec<Gid> {
    let name = User::from_uid(uid).ok().flatten().and_then(|user| CString::new(user.name).ok());
    name.and_then(|name| getgrouplist(&name, gid).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_come_without_a_key() {
        let (own, group) = (Uid::from_raw(990), Gid::from_raw(991));
        for (uid, gid, member, admin) in [
            (0, 0, false, true),
            (990, 991, false, true),
            (990, 5, false, true),
            (1000, 991, false, true),
            (1000, 1000, true, true),
            (1000, 1000, false, false),
            (65_534, 65_534, false, false),
        ] {
            let groups = |_, gid| if member { vec![gid, group] } else { vec![gid] };
            assert_eq!(is_admin(Uid::from_raw(uid), Gid::from_raw(gid), own, group, groups), admin, "{uid}:{gid}");
        }
        assert!(groups_of(Uid::from_raw(0), Gid::from_raw(0)).contains(&Gid::from_raw(0)));
        assert!(groups_of(Uid::from_raw(4_000_000_001), Gid::from_raw(7)).is_empty());
    }
}
