//! File operations of requests, on threads of their own. At most [`AT_ONCE`] of one caller run at the
//! same time and further ones wait, so one tenant cannot occupy the threads of all.

use std::future::Future;

use super::error::ApiError;
use crate::sessions::quota::admission::Admissions;
use crate::sessions::quota::shares::Holder;

/// File operations of one caller at the same time. tokio has 512 threads for them.
pub const AT_ONCE: usize = 8;

/// The threads that a request may use.
#[derive(Clone, Debug)]
pub struct Threads {
    pub of: Admissions<Holder>,
    pub holder: Holder,
}

tokio::task_local! {
    static THREADS: Threads;
}

/// Runs a request that may call [`blocking`].
pub fn scope<F: Future>(threads: Threads, request: F) -> impl Future<Output = F::Output> {
    THREADS.scope(threads, request)
}

/// Runs work on descriptors off the async threads, for the caller of the request that is running.
///
/// # Errors
/// Those of the work; 500 when it panics.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let admission = match THREADS.try_with(Clone::clone) {
        Ok(Threads { of, holder }) => Some(of.wait(&holder).await),
        Err(_) => None,
    };
    let request = tracing::Span::current();
    let work = move || {
        // Until the work ends, whoever waits for it.
        let _admission = admission;
        request.in_scope(work)
    };
    tokio::task::spawn_blocking(work).await.map_err(|cause| ApiError::internal("file operation aborted", &cause))?
}
