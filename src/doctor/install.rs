//! Checks of installation and configuration: users, directories, programs, claude, the connection
//! to the model, services.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Finding, failure, ok, warning};
use crate::config::{Config, Upstream};
use ash_kernel::trusted;

/// Timeout for connecting to the model's host.
const UPSTREAM_WITHIN: Duration = Duration::from_secs(5);
/// Free bytes below which the disk is low.
const LOW_DISK: u64 = 5 << 30;
const NO_DISK: u64 = 256 << 20;

pub async fn examine(config: &Config) -> Vec<Finding> {
    let mut findings =
        vec![user("user ashd", &config.launcher.user), user("user of the gateway", &config.gateway.user)];
    findings.extend(data_dir(&config.data_dir));
    findings.extend(["ash-launcher", "ash-gateway", "ash-probe"].map(program));
    findings.push(claude(config));
    findings.push(upstream(&config.gateway.upstream).await);
    findings.extend(in_clear(config));
    findings.extend(services(config).await);
    findings
}

fn user(check: &'static str, name: &str) -> Finding {
    match nix::unistd::User::from_name(name) {
        Ok(Some(user)) => ok(check, format!("{name}, uid {}", user.uid)),
        // An ashd without systemd uses unassigned ids instead.
        _ => warning(
            check,
            format!("user {name} does not exist"),
            format!("adduser --system --group --no-create-home {name}"),
        ),
    }
}

fn data_dir(dir: &Path) -> Vec<Finding> {
    let shown = dir.display();
    let Ok(meta) = fs::metadata(dir) else {
        return vec![warning(
            "data directory",
            format!("{shown} does not exist yet"),
            "systemctl start ashd, which creates it",
        )];
    };
    let mode = meta.permissions().mode() & 0o777;
    let mut findings = vec![if mode & 0o007 == 0 {
        ok("data directory", format!("{shown}, owner {}, mode {mode:o}", meta.uid()))
    } else {
        warning(
            "data directory",
            format!("{shown} has mode {mode:o}: other users can read it"),
            format!("chmod o-rwx {shown}"),
        )
    }];
    if let Ok(stat) = rustix::fs::statvfs(dir) {
        findings.push(setuid(stat.f_flag.contains(rustix::fs::StatVfsMountFlags::NOSUID), mode, dir));
        let (free, inodes) = (stat.f_bavail * stat.f_frsize, stat.f_favail);
        let found = format!("{} MiB and {inodes} inodes free on {shown}", free >> 20);
        let mend = "free disk space, or move the data directory (data_dir in /etc/ashd/ashd.toml)";
        findings.push(match free {
            // File systems without a table of inodes report 0 of 0.
            _ if stat.f_files > 0 && inodes < 10_000 => failure("disk", found, mend),
            ..NO_DISK => failure("disk", found, mend),
            NO_DISK..LOW_DISK => warning("disk", found, mend),
            _ => ok("disk", found),
        });
    }
    findings
}

/// Setuid bits of a payload's files: on the host, these files belong to ashd.
fn setuid(nosuid: bool, mode: u32, dir: &Path) -> Finding {
    let shown = dir.display();
    if nosuid {
        return ok("setuid files", format!("without effect: {shown} is mounted nosuid"));
    }
    let found = format!("{shown} is not mounted nosuid");
    if mode & 0o007 == 0 {
        return ok("setuid files", format!("out of reach: {found}, but its mode {mode:o} keeps other users out"));
    }
    warning(
        "setuid files",
        format!(
            "{found}, and mode {mode:o} admits other users: only the mode of the sessions directory keeps them out"
        ),
        format!("chmod o-rwx {shown}, or mount it nosuid (docs/operations.md)"),
    )
}

/// Where ashd searches for its other programs.
pub fn find(name: &str) -> Option<PathBuf> {
    let own = std::env::current_exe().ok().and_then(|path| path.parent().map(Path::to_owned));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = own.into_iter().chain([PathBuf::from("/usr/lib/ashd")]).chain(std::env::split_paths(&path));
    places.map(|dir| dir.join(name)).find(|file| file.is_file())
}

fn program(name: &'static str) -> Finding {
    match find(name) {
        Some(path) => ok(name, path.display().to_string()),
        None => failure(name, "not found beside ashctl, in /usr/lib/ashd or in PATH", "apt install --reinstall ashd"),
    }
}

fn claude(config: &Config) -> Finding {
    let path = config.claude.program();
    let mend = || format!("ashctl claude install {}", config.claude.version);
    let stat = trusted::file(&path).map(|file| rustix::fs::fstat(&file));
    match stat {
        Ok(Ok(stat)) if stat.st_mode & 0o005 == 0o005 => warning(
            "claude",
            format!(
                "{} is readable by every user, so a command in a sandbox can trace the claude that started it",
                path.display()
            ),
            format!("chmod 0711 {}", path.display()),
        ),
        Ok(Ok(stat)) if stat.st_mode & 0o001 != 0 => {
            ok("claude", format!("{}, {} MiB", path.display(), stat.st_size >> 20))
        }
        Ok(Ok(_)) => failure("claude", format!("{} is not executable for all users", path.display()), mend()),
        Ok(Err(error)) => failure("claude", format!("{}: {error}", path.display()), mend()),
        // The launcher refuses it too.
        Err(why) => failure("claude", why.to_string(), why.remedy().unwrap_or_else(mend)),
    }
}

async fn upstream(upstream: &Upstream) -> Finding {
    let url = match upstream {
        Upstream::Offline => return ok("model", "offline: scripted answers, no key needed"),
        Upstream::Url(url) => url,
    };
    let Some(address) = address(url) else {
        return failure(
            "model",
            format!("{url} is not a valid address"),
            "set gateway.upstream in /etc/ashd/ashd.toml",
        );
    };
    match tokio::time::timeout(UPSTREAM_WITHIN, tokio::net::TcpStream::connect(&address)).await {
        Ok(Ok(_)) => ok("model", format!("{address} answers")),
        Ok(Err(error)) => {
            failure("model", format!("{address}: {error}"), format!("run curl -v {url}, then fix DNS or the firewall"))
        }
        Err(_) => failure(
            "model",
            format!("{address}: no answer within 5 s"),
            format!("run curl -v {url}, then fix the firewall"),
        ),
    }
}

/// An upstream that receives the model key in clear, as configured.
fn in_clear(config: &Config) -> Option<Finding> {
    let Upstream::Url(url) = &config.gateway.upstream else { return None };
    ash_model::sends_in_clear(url).then(|| {
        warning(
            "model key",
            format!("it is sent to {url} in clear (gateway.allow_insecure_upstream)"),
            "use an https:// URL in gateway.upstream",
        )
    })
}

fn address(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let host = rest.split(['/', '?']).next().filter(|host| !host.is_empty())?;
    let host = host.rsplit('@').next()?;
    let after_brackets = host.rsplit(']').next()?;
    if after_brackets.contains(':') {
        return Some(host.to_owned());
    }
    Some(format!("{host}:{}", if scheme == "http" { 80 } else { 443 }))
}

async fn services(config: &Config) -> Vec<Finding> {
    let socket = |check: &'static str, unit: &str| {
        let path = config.run_dir.join(format!("{check}.sock"));
        match ash_kernel::seqpacket::connect(&path, true) {
            Ok(_) => ok(check, format!("listens at {}", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                warning(check, format!("{}: {error}", path.display()), "sudo ashctl doctor")
            }
            Err(error) => warning(check, format!("{}: {error}", path.display()), format!("systemctl start {unit}")),
        }
    };
    let mut findings = vec![socket("launcher", "ash-launcher"), socket("gateway", "ash-gateway")];
    // 0.0.0.0 and 0 stand for "any": the chosen port is in the run directory.
    let chosen = fs::read_to_string(config.run_dir.join("port")).ok().and_then(|text| text.trim().parse().ok());
    let port: u16 = chosen.unwrap_or(config.server.port);
    let ip = if config.server.host.is_unspecified() { [127, 0, 0, 1].into() } else { config.server.host };
    let connected = tokio::time::timeout(UPSTREAM_WITHIN, tokio::net::TcpStream::connect((ip, port))).await;
    findings.push(match connected {
        Ok(Ok(_)) => ok("ashd", format!("listens at {ip}:{port}")),
        _ => warning("ashd", format!("no process listens on {ip}:{port}"), "systemctl start ashd, or: sudo ashd"),
    });
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    #[test]
    fn addresses() {
        for (url, wanted) in [
            ("https://api.anthropic.com", Some("api.anthropic.com:443")),
            ("http://10.0.0.5:8080/v1", Some("10.0.0.5:8080")),
            ("http://host/x?y=:", Some("host:80")),
            ("https://[::1]:4000/", Some("[::1]:4000")),
            ("https://[::1]/", Some("[::1]:443")),
            ("https://user:secret@host", Some("host:443")),
            ("nonsense", None),
            ("https://", None),
        ] {
            assert_eq!(address(url).as_deref(), wanted, "{url}");
        }
    }

    #[test]
    fn setuid_files_are_harmless_where_they_do_nothing_or_cannot_be_reached() {
        let dir = Path::new("/var/lib/ashd");
        for (nosuid, mode, status) in [
            (true, 0o755, Status::Ok),
            (false, 0o750, Status::Ok),
            (false, 0o700, Status::Ok),
            (false, 0o751, Status::Warning),
            (false, 0o755, Status::Warning),
        ] {
            let finding = setuid(nosuid, mode, dir);
            assert_eq!(finding.status, status, "{nosuid} {mode:o}: {}", finding.found);
        }
        assert!(setuid(false, 0o755, dir).mend.unwrap().contains("nosuid"));
    }

    #[test]
    fn a_missing_claude_names_the_command() {
        let mut config = Config::default();
        config.claude.dir = "/nonexistent".into();
        let finding = claude(&config);
        assert_eq!(finding.status, Status::Failure);
        assert!(finding.mend.unwrap().starts_with("ashctl claude install"));
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("claude");
        fs::write(&program, "x").unwrap();
        config.claude.binary = Some(program.clone());
        for (mode, status, mend) in
            [(0o700, Status::Failure, "install"), (0o711, Status::Ok, ""), (0o755, Status::Warning, "chmod 0711")]
        {
            fs::set_permissions(&program, fs::Permissions::from_mode(mode)).unwrap();
            let finding = claude(&config);
            assert_eq!(finding.status, status, "{mode:o}");
            assert!(finding.mend.unwrap_or_default().contains(mend), "{mode:o}");
        }
        assert_eq!(user("user", "no-such-user-at-all").status, Status::Warning);
    }

    #[tokio::test]
    async fn a_model_that_does_not_answer_is_a_failure() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        assert_eq!(upstream(&Upstream::Url(url.clone())).await.status, Status::Ok);
        drop(listener);
        assert_eq!(upstream(&Upstream::Url(url)).await.status, Status::Failure);
        assert_eq!(upstream(&Upstream::Offline).await.status, Status::Ok);
    }
}
