//! Errors of a command: text, hint and exit code.

use std::io;

#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// Wrong usage.
    #[error("{0}")]
    Usage(String),
    #[error("cannot reach ashd at {url}: {reason}")]
    Unreachable { url: String, reason: String },
    /// HTTP 401, with the daemon's text.
    #[error("not authorised: {0}")]
    Unauthorised(String),
    /// Any other HTTP error, with the daemon's text.
    #[error("{error} (HTTP {status})")]
    Refused { status: u16, error: String },
    /// The stream of a turn reported a failure, or ended before the turn did.
    #[error("the turn failed: {0}")]
    Turn(String),
    /// The command of `session exec` ended with this exit code.
    #[error("the command ended with exit code {0}")]
    Command(u8),
    /// An answer that does not follow the API.
    #[error("unexpected answer from the daemon: {0}")]
    Answer(String),
    #[error("{0}")]
    Install(String),
    #[error("{path}: {source}")]
    File { path: String, source: io::Error },
    #[error("standard output: {0}")]
    Stdout(io::Error),
}

impl CtlError {
    pub fn file(path: impl AsRef<std::path::Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().display().to_string();
        move |source| Self::File { path, source }
    }

    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Unreachable { .. } => 3,
            Self::Unauthorised(_) => 4,
            Self::Command(code) => *code,
            // The reader of our output closed it (`ashctl ... | head`): not a failure.
            Self::Stdout(e) if e.kind() == io::ErrorKind::BrokenPipe => 0,
            _ => 1,
        }
    }

    /// Whether to print nothing: a command in the sandbox has already written its error.
    pub fn is_silent(&self) -> bool {
        matches!(self, Self::Command(_)) || self.exit_code() == 0
    }

    /// The next step for the user, in one line.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Unreachable { .. } => Some(
                "is it running? Try `systemctl status ashd`, or start it with `sudo ashd`; set another address with --url or ASH_URL",
            ),
            Self::Unauthorised(_) => Some(
                "pass --key or set ASH_API_KEY; the first key is in <data dir>/initial-api-key, which root and ashd can read (try sudo)",
            ),
            Self::Refused { status: 409, .. } => {
                Some("wait for the running turn, or end it with `ashctl session interrupt ID`")
            }
            Self::Refused { status: 410, .. } => {
                Some("an ended session cannot be resumed; create another with `ashctl session create AGENT`")
            }
            Self::Refused { status: 400, error }
                if error.starts_with("Session is paused") || error.starts_with("Session is error") =>
            {
                Some("resume it first with `ashctl session resume ID`")
            }
            Self::Refused { status: 503, .. } => Some("see `ashctl health` for what is in use"),
            Self::Turn(_) => Some("to continue: `ashctl session resume ID`; for details: `ashctl session events ID`"),
            Self::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("try again with sudo")
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_the_manual() {
        let refused = CtlError::Refused { status: 404, error: "x".into() };
        let gone = CtlError::Stdout(io::Error::from(io::ErrorKind::BrokenPipe));
        let away = CtlError::Unreachable { url: "u".into(), reason: "r".into() };
        let table = [
            (refused, 1),
            (CtlError::Turn("x".into()), 1),
            (CtlError::Install("x".into()), 1),
            (CtlError::Usage("x".into()), 2),
            (away, 3),
            (CtlError::Unauthorised("x".into()), 4),
            (gone, 0),
            (CtlError::Command(137), 137),
        ];
        for (error, code) in table {
            assert_eq!(error.exit_code(), code, "{error}");
        }
    }
}
