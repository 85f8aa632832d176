//! Sends requests to a session's task, and interprets a missing answer.

use std::time::Duration;

use tokio::sync::oneshot;

use crate::sessions::api::owned_session::Own;
use crate::sessions::driver::{Reply, Request};
use crate::sessions::{SessionError, Sessions};

/// Attempts, 50 ms apart, to see the removal of a session's row after its task ended without an
/// answer.
const ROW_GOES: u32 = 40;

impl Sessions {
    pub(in crate::sessions) async fn ask<T>(
        &self,
        own: &Own,
        make: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<T, SessionError> {
        let (reply, answer) = oneshot::channel();
        self.shared.pass_on(own.tenant().clone(), own.id(), make(reply)).await;
        if let Ok(answer) = answer.await {
            return answer;
        }
        // A task ends without an answer when it panics, or when the session is removed meanwhile:
        // its row vanishes soon.
        for _ in 0..ROW_GOES {
            if self.shared.store.session_of_any_tenant(own.id()).await?.is_none() {
                return Err(SessionError::NotFound);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(SessionError::Failed("the session's task failed; see the journal of ashd".to_owned()))
    }
}
