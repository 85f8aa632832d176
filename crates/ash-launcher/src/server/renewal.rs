//! Changes of a running launcher: new settings (SIGHUP), and a new program (SIGUSR2, [`again`]).

use std::os::fd::OwnedFd;

use super::{STATUS, Server};
use crate::again;
use crate::settings::Settings;
use ash_observe::systemd;

impl Server {
    pub(super) fn prepare_again(&mut self) {
        systemd::reloading();
        match again::check(&self.origin) {
            Ok(()) => self.again = true,
            Err(error) => self.stay(&error),
        }
    }

    /// Returns only on a failure. The old program then continues.
    pub(super) fn execute(&mut self) {
        self.again = false;
        self.sandboxes.unprepare();
        let reclaims = self.sandboxes.reclaims.hand_over();
        let connections: Vec<&OwnedFd> = self.connections.values().map(|connection| &connection.socket).collect();
        let error =
            again::execute(&self.origin, &self.listener, &connections, reclaims.clone(), self.sandboxes.victims.log());
        self.resume(Vec::new(), reclaims);
        self.stay(&error.to_string());
    }

    fn stay(&self, error: &str) {
        tracing::error!(%error, "the program was not replaced: the old one continues");
        systemd::ready(STATUS);
    }

    /// Applies the settings that may change while sandboxes run. The others need a restart.
    pub(super) fn reload(&mut self) {
        match Settings::load(&self.flags) {
            Ok(new) => {
                let now = &mut self.sandboxes.settings;
                (now.ceiling, now.floor, now.claude_binary) = (new.ceiling, new.floor, new.claude_binary);
                tracing::info!("settings reloaded");
            }
            Err(error) => tracing::error!(%error, "settings not reloaded"),
        }
    }
}
