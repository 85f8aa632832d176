//! The events that need an operator's attention: meaning, cause and remedy of each in one table.
//! The table is the source of the journal catalog (`journalctl -x`, `packaging/ashd.catalog`).
//! `journalctl MESSAGE_ID=...` finds the events.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Warning,
    Error,
}

/// One kind of event. The meaning of an `id` never changes, and no `id` is used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// `MESSAGE_ID`: 128 bits as 32 hexadecimal digits.
    pub id: &'static str,
    /// `ASH_EVENT`.
    pub name: &'static str,
    pub severity: Severity,
    /// One line.
    pub subject: &'static str,
    pub cause: &'static str,
    pub remedy: &'static str,
}

macro_rules! events {
    ($($constant:ident = $id:literal, $name:literal, $severity:ident, $subject:literal, $cause:literal, $remedy:literal;)+) => {
        $(pub static $constant: Event = Event {
            id: $id, name: $name, severity: Severity::$severity, subject: $subject, cause: $cause, remedy: $remedy,
        };)+
        pub static ALL: &[&Event] = &[$(&$constant),+];
    };
}

events! {
    OOM_KILLED = "ec71f07a18af46fdb8cf3b2ad2942e0c", "killed", Warning,
        "A session reached its memory limit",
        "The kernel killed processes of session @ASH_SESSION@ (tenant @ASH_TENANT@) because its sandbox reached memoryBytes, or because ash.slice or the host had no memory left; the message says which.",
        "The session can be resumed, its conversation is kept: ashctl session resume ID. More memory: ashctl limits set --session ID memory=4GiB.";
    KILLED_BY_SIGNAL = "0a7c5b71405c4901bc73bff9eda31fcf", "killed", Warning,
        "A session's claude was killed by a signal",
        "No limit was reached: claude crashed, or the agent or another process on this host killed it.",
        "Resume the session: ashctl session resume ID. The last output of claude: ashctl session logs ID.";
    SANDBOX_DIED = "b56e7ea85daa4149b4212a6c14104f58", "killed", Warning,
        "A whole sandbox was killed from outside",
        "The init process of a sandbox ended without a request of ashd: an administrator killed it, or the host ran out of memory and the OOM killer chose it.",
        "Resume the session. If the host ran out of memory: limit ash.slice (systemctl set-property ash.slice MemoryMax=...), lower the limits of sessions, or add memory.";
    PIDS_LIMIT = "d16458540d7a4601b59cf6e762520f3a", "limited", Warning,
        "A session reached its limit of processes",
        "fork(2) fails with EAGAIN in the sandbox of session @ASH_SESSION@.",
        "Nothing was killed. If the agent needs more: ashctl limits set --session ID pids=1024.";
    DISK_LIMIT = "c223e237a0204c70944b3a915f51fac0", "limited", Warning,
        "A session is paused: disk limit exceeded",
        "The files of session @ASH_SESSION@ exceed diskBytes or diskFiles.",
        "Remove files (DELETE /api/sessions/ID/files/...) or raise the limit: ashctl limits set --session ID disk=4GiB. The session then continues by itself.";
    TURN_TIME = "12fc0ba6b03741f7a34db731cc97a869", "limited", Warning,
        "A turn took longer than its limit and was interrupted",
        "The turn of session @ASH_SESSION@ took longer than turnMs.",
        "Send another message to continue. More time: ashctl limits set --session ID turn=2h.";
    BUDGET = "042ff984ac754e4d9394e7148a1f0a29", "limited", Warning,
        "A turn used up its budget and was ended",
        "claude in session @ASH_SESSION@ reached the maxBudgetUsd or maxTurns of its message.",
        "Send another message to continue. Each message has its own budget.";
    NOT_CONFINED = "ba5b76cb466440939eedc7574b31ee99", "not-confined", Error,
        "A session was not started: its confinement is incomplete",
        "The probe found that a layer required by [confinement] floor is not in force in the new sandbox.",
        "ashctl doctor names the layer and what this host lacks. An admin can remove a layer from the floor by its name. Read docs/sandbox.md first.";
    START_FAILED = "70208f1e512948c4afda4c76308ae485", "start-failed", Warning,
        "A sandbox or its claude did not start",
        "A step of the start failed; the message names it.",
        "ashctl doctor checks claude, launcher and host. The client got the error, and everything that was created was removed.";
    RESUME_FAILED = "dc84e0a366294a43bbf9844df1155791", "resume-failed", Warning,
        "A session could not be resumed",
        "Session @ASH_SESSION@ keeps its state. The message names the cause.",
        "Correct the cause, then resume the session: ashctl session resume ID.";
    CONVERSATION_LOST = "9becbb4f36584fabbe5d395af6b5b023", "conversation-lost", Error,
        "The conversation of a session is gone",
        "claude's record of the conversation in the session's home directory is missing: the agent or an administrator removed it.",
        "The messages are still stored: ashctl session messages ID. Restore the record from a backup (ashctl restore), or continue in a new session.";
    NO_ROOM = "a9a28d1ba6f242ae839897b1d302f532", "refused", Warning,
        "A new sandbox was refused: the host is full",
        "The number of sandboxes is pool.max_sandboxes and none can be evicted, or too little memory is available.",
        "ashctl top shows who uses what. Raise pool.max_sandboxes, end or pause sessions, or add memory. Logged at most once a minute.";
    DISK_RESERVE = "b8dc437e347140fbb23a7b7e54e68db1", "refused", Error,
        "New work is refused: the disk is nearly full",
        "The file system of the data directory has less free space than disk.reserve_bytes. Running sessions continue.",
        "End sessions that are not needed (their files are removed after sessions.keep_ended), or enlarge the file system. Logged at most once a minute.";
    STORAGE_LIMIT = "c2b0f6cf5d434d3c9a3c1a5b2f6e7d10", "limited", Warning,
        "A tenant reached its storage limit",
        "The files and rows of tenant @ASH_TENANT@ have reached its storageBytes. New sessions, messages and uploads are refused, and running writers were stopped.",
        "ashctl limits show --tenant NAME shows what the tenant stores. Delete sessions, attachments or agents, or raise the limit: ashctl limits set --tenant NAME storage=20GiB.";
    STORE_FAILED = "4c459153dbca4a89969787d68f9e4feb", "store-failed", Error,
        "The database cannot be written",
        "The disk is full or read-only, or another program holds a lock on ashd.db.",
        "Free disk space, or mount the file system writable. Waiting messages of running turns are then written. No restart is needed.";
    LAUNCHER_LOST = "78b6bb442b8645e9975f03e94cd9647a", "launcher-lost", Error,
        "The launcher does not answer",
        "ash-launcher has not answered for 5 seconds. Running sandboxes continue; none can be started or ended.",
        "systemctl status ash-launcher; journalctl -u ash-launcher.";
    GATEWAY_LOST = "6224d7cb08214a6db8d5680b9ca4b738", "gateway-lost", Error,
        "The model gateway does not answer",
        "ash-gateway has not answered for 5 seconds. Turns wait for the model.",
        "systemctl status ash-gateway; journalctl -u ash-gateway.";
    KEY_REFUSED = "5fe64d5143bd4abfb070333b9c2f6554", "upstream-refused", Error,
        "The model's API refuses the key",
        "The upstream answered 401 or 403: the key is wrong, expired or has no rights. If the session has a credential of its own, that one is refused.",
        "Put a valid key into /etc/ashd/anthropic_api_key and: systemctl restart ash-gateway. The key of a tenant: POST /api/credentials. Logged at most once a minute.";
    RATE_LIMITED = "bebcc0cf2676495dbdb24fe915033920", "upstream-limited", Warning,
        "The model's API limits the rate of requests",
        "The upstream answered 429. claude waits and repeats the request by itself, so turns become slow.",
        "Run fewer sessions at once (pool.max_sandboxes), or ask the provider for a higher limit. Logged at most once a minute.";
    UPSTREAM_AWAY = "ff0373bd3440494a98bb1c21beca0003", "upstream-away", Warning,
        "The model's API cannot be reached",
        "There was no connection, no TLS session or no answer. The message names the cause.",
        "Check gateway.upstream and the network connection of this host. ashctl doctor tests it. Logged at most once a minute.";
    LEDGER_FAILED = "b0f6f8bd6c1b4a0f9ef1c2a8d4b7a36e", "ledger-failed", Error,
        "The gateway cannot record usage",
        "The state directory of ash-gateway (/var/lib/ash-gateway) cannot be written: the disk is full or read-only, or the directory was removed.",
        "Free disk space, or mount the file system writable. Requests are then admitted again, and the usage of running answers is recorded.";
    INSECURE_UPSTREAM = "5d0fd1c0c7a94c52a4a4dd5f0e0ac1b7", "insecure-upstream", Warning,
        "The model key is sent unencrypted",
        "The upstream is an http:// URL of another host, and allow_insecure_upstream is set: anyone with access to the network can read the model key and all conversations.",
        "Use https:// in gateway.upstream (or ANTHROPIC_BASE_URL), and remove allow_insecure_upstream.";
    STALLED = "539c7028d633432782883d72f4b5bd15", "stalled", Error,
        "ashd is stalled: the watchdog gets no notification",
        "The main loop makes no progress. After WatchdogSec= systemd restarts ashd. Sandboxes continue meanwhile.",
        "See journalctl -u ashd around this time. The usual cause is a disk that does not respond.";
    WEDGED = "5aca53251ae04cf995fdcb636360b5ee", "wedged", Error,
        "A session's task hangs",
        "One step of session @ASH_SESSION@ takes more than 5 minutes. The session answers no request.",
        "systemctl restart ashd starts a new task for the session. Its sandbox continues. Please report the journal entries before this one.";
    RELOAD_FAILED = "f0eaa8acaa4c4cd6bd5fa2c64ee276c1", "reload-failed", Error,
        "The configuration was not applied",
        "A file is missing, unreadable or invalid. The message has file, line and key. The previous configuration stays in effect completely.",
        "Correct the file, check it with ashd check-config, and run: systemctl reload ashd.";
    PANICKED = "a6d11d90671b4b22a5f061428633d8bf", "panic", Error,
        "An internal error in ashd",
        "A request or a task panicked. Other requests and sessions continue.",
        "Please report the journal entries around this one.";
}

/// The event for a short reason, as used in the timeline and `ash_limited_total`.
pub fn of_reason(reason: &str) -> &'static Event {
    match reason {
        "oom" => &OOM_KILLED,
        "pids" => &PIDS_LIMIT,
        "disk" => &DISK_LIMIT,
        "storage" => &STORAGE_LIMIT,
        "turn-time" => &TURN_TIME,
        "budget" => &BUDGET,
        "sandbox-died" => &SANDBOX_DIED,
        _ => &KILLED_BY_SIGNAL,
    }
}

/// The journal's catalog (<https://systemd.io/CATALOG/>).
pub fn catalog() -> String {
    let entry = |event: &&Event| {
        let Event { id, name, subject, cause, remedy, .. } = event;
        format!(
            "\n-- {id}\nSubject: {subject}\nDefined-By: ashd\nDocumentation: man:ashd(8)\n\n{cause}\n\n{remedy}\n\nASH_EVENT={name}\n"
        )
    };
    let entries: String = ALL.iter().map(entry).collect();
    format!(
        "# The events of ashd that need an operator's attention, for journalctl -x. Made from crates/ash-observe/src/events.rs:\n\
         #   ASHD_WRITE_CATALOG=1 cargo test -p ash-observe the_catalog\n{entries}"
    )
}

/// Logs an [`Event`] with its level, `MESSAGE_ID` and `ASH_EVENT`. The other arguments are those of
/// `tracing::warn!`.
#[macro_export]
macro_rules! event {
    ($event:expr, $($rest:tt)+) => {{
        let event: &$crate::events::Event = $event;
        match event.severity {
            $crate::events::Severity::Error => {
                tracing::error!(MESSAGE_ID = event.id, ASH_EVENT = event.name, $($rest)+)
            }
            $crate::events::Severity::Warning => {
                tracing::warn!(MESSAGE_ID = event.id, ASH_EVENT = event.name, $($rest)+)
            }
        }
    }};
}
pub use event;

/// Lets one event per minute through: a fault that affects every request must not fill the journal.
#[derive(Debug, Default)]
pub struct OncePerMinute(std::sync::Mutex<Option<std::time::Instant>>);

impl OncePerMinute {
    pub const fn new() -> Self {
        Self(std::sync::Mutex::new(None))
    }

    pub fn now(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let due = last.is_none_or(|last| last.elapsed() >= std::time::Duration::from_secs(60));
        if due {
            *last = Some(std::time::Instant::now());
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn ids_are_128_bits_and_unique_and_every_event_says_what_to_do() {
        let ids: BTreeSet<&str> = ALL.iter().map(|event| event.id).collect();
        assert_eq!(ids.len(), ALL.len());
        for event in ALL {
            let hex = event.id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            assert!(event.id.len() == 32 && hex, "{}", event.id);
            assert!(event.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{}", event.name);
            assert!(!event.subject.contains('\n') && event.subject.len() < 80, "{}", event.subject);
            assert!(event.cause.ends_with('.') && event.remedy.ends_with('.'), "{}", event.subject);
        }
        assert_eq!((of_reason("oom"), of_reason("signal")), (&OOM_KILLED, &KILLED_BY_SIGNAL));
    }

    #[test]
    fn the_catalog_of_the_package_is_this_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/ashd.catalog");
        if std::env::var_os("ASHD_WRITE_CATALOG").is_some() {
            std::fs::write(path, catalog()).unwrap();
        }
        let packaged = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            packaged == catalog(),
            "packaging/ashd.catalog is old: ASHD_WRITE_CATALOG=1 cargo test -p ash-observe the_catalog"
        );
    }

    #[test]
    fn one_in_a_minute() {
        let gate = OncePerMinute::new();
        assert_eq!([gate.now(), gate.now(), gate.now()], [true, false, false]);
    }
}
