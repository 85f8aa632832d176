//! `ashctl doctor`: checks host and installation, and shows how to fix what is wrong.
//!
//! ```text
//!   host     kernel, namespaces, landlock, seccomp, cgroups, swap, clock, limits (pure: texts in)
//!   install  configuration, users, directories, programs, claude, upstream, services
//!   daemons  running daemons: whether each confines itself
//!   live     a temporary sandbox: every layer measured from within, claude started
//!                    |
//!                    v
//!   findings -> table or JSON -> exit 0 all well, 1 warnings, 2 failures
//! ```

mod daemons;
mod host;
mod install;
mod live;

use std::path::Path;

use serde::Serialize;

use crate::config::Config;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Ok,
    /// Works, but with limitations.
    Warning,
    /// Sessions do not start, or lack protection.
    Failure,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub check: &'static str,
    pub status: Status,
    pub found: String,
    /// The command or setting that fixes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

fn ok(check: &'static str, found: impl Into<String>) -> Finding {
    Finding { check, status: Status::Ok, found: found.into(), mend: None }
}

fn warning(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding { check, status: Status::Warning, found: found.into(), mend: Some(mend.into()) }
}

fn failure(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding { check, status: Status::Failure, found: found.into(), mend: Some(mend.into()) }
}

/// Everything that was checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// The worst status of all findings.
    pub status: Status,
    pub findings: Vec<Finding>,
}

impl Diagnosis {
    fn new(findings: Vec<Finding>) -> Self {
        let status = findings.iter().map(|finding| finding.status).max().unwrap_or(Status::Ok);
        Self { status, findings }
    }

    /// 0 all well, 1 warnings, 2 failures.
    pub fn exit_code(&self) -> u8 {
        self.status as u8
    }

    /// One line per finding, and below it the fix.
    pub fn text(&self) -> String {
        let width = self.findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
        let mut text = String::new();
        for finding in &self.findings {
            let mark = match finding.status {
                Status::Ok => "ok  ",
                Status::Warning => "warn",
                Status::Failure => "FAIL",
            };
            text.push_str(&format!("{mark}  {:width$}  {}\n", finding.check, finding.found));
            if let Some(mend) = &finding.mend {
                text.push_str(&format!("      {:width$}  -> {mend}\n", ""));
            }
        }
        let count = |status| self.findings.iter().filter(|finding| finding.status == status).count();
        text.push_str(&format!(
            "{} checks: {} failures, {} warnings\n",
            self.findings.len(),
            count(Status::Failure),
            count(Status::Warning)
        ));
        text
    }
}

/// Runs all checks. `config` is a file to use instead of the default one.
pub async fn examine(config: Option<&Path>) -> Diagnosis {
    let mut findings = Vec::new();
    let config = match Config::load(config) {
        Ok(config) => {
            findings.push(ok("configuration", "read without errors"));
            config
        }
        Err(errors) => {
            let text = errors.to_string();
            findings.push(failure("configuration", text, "fix it, then run: ashd check-config"));
            Config::default()
        }
    };
    findings.extend(host::examine(&config));
    findings.extend(install::examine(&config).await);
    findings.extend(daemons::examine(&config));
    findings.extend(live::examine(&config).await);
    Diagnosis::new(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_decides() {
        let code = |findings: &[Finding]| Diagnosis::new(findings.to_vec()).exit_code();
        let (good, odd, bad) = (ok("a", "fine"), warning("b", "meh", "do b"), failure("c", "no", "do c"));
        assert_eq!(code(&[]), 0);
        assert_eq!(code(std::slice::from_ref(&good)), 0);
        assert_eq!(code(&[good.clone(), odd.clone()]), 1);
        assert_eq!(code(&[bad.clone(), odd.clone(), good.clone()]), 2);
        let text = Diagnosis::new(vec![good, odd, bad]).text();
        assert!(
            text.contains("FAIL  c  no\n")
                && text.contains("-> do b")
                && text.ends_with("3 checks: 1 failures, 1 warnings\n"),
            "{text}"
        );
    }
}
