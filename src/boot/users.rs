//! The users of ashd and the gateway.

use nix::unistd::User;

use super::BootError;
use crate::config::LauncherConfig;

/// A user, for other programs (`name`: the name, or the number if there is no such user) and for
/// the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Debug)]
pub(super) struct Accounts {
    pub ashd: Account,
    pub gateway: Account,
}

/// The users of the configuration. A host without the package does not have them; then ashd uses
/// the two unassigned ids just below those of the sandboxes.
pub(super) fn find(launcher: &LauncherConfig, gateway_user: &str) -> Result<Accounts, BootError> {
    let ashd = account(&launcher.user, launcher.uid_base - 2)?;
    let gateway = account(gateway_user, launcher.uid_base - 1)?;
    for (key, account) in [("launcher.user", &ashd), ("gateway.user", &gateway)] {
        if account.uid == 0 {
            return Err(BootError::Refused(format!("{key}: {} is root; choose an unprivileged user", account.name)));
        }
    }
    if ashd.uid == gateway.uid {
        return Err(BootError::Refused(format!(
            "launcher.user and gateway.user are both {}; the user that parses network input must not be the one that holds the key",
            ashd.name
        )));
    }
    Ok(Accounts { ashd, gateway })
}

fn account(name: &str, fallback: u32) -> Result<Account, BootError> {
    let found = User::from_name(name).map_err(BootError::errno(format!("user {name}")))?;
    Ok(match found {
        Some(user) => Account { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw() },
        None => {
            tracing::info!(user = name, uid = fallback, "the user does not exist; using an unassigned uid instead");
            Account { name: fallback.to_string(), uid: fallback, gid: fallback }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_missing_user_is_a_number_below_the_sandboxes_and_root_is_refused() {
        let mut launcher = Config::default().launcher;
        launcher.user = "nobody-has-this-name".to_owned();
        let found = find(&launcher, "neither-this-one").unwrap();
        assert_eq!((found.ashd.uid, found.gateway.uid), (launcher.uid_base - 2, launcher.uid_base - 1));
        assert_eq!(found.ashd.name, found.ashd.uid.to_string());
        launcher.user = "root".to_owned();
        assert!(find(&launcher, "x").is_err());
        launcher.user = "nobody".to_owned();
        assert!(find(&launcher, "nobody").is_err());
    }
}
