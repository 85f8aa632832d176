//! Connections to ashd's unix socket, where root and members of group ashd need no key.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// The socket of a packaged ashd.
pub const SOCKET: &str = "/run/ashd/ashd.sock";

/// Connects to one socket, whatever the URI's host is.
#[derive(Clone, Debug)]
pub struct UnixConnector(pub PathBuf);

impl tower::Service<Uri> for UnixConnector {
    type Response = TokioIo<UnixStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = self.0.clone();
        Box::pin(async move { UnixStream::connect(path).await.map(TokioIo::new) })
    }
}

/// The path of `unix:/run/ashd/ashd.sock` or `unix:///run/ashd/ashd.sock`.
pub fn path_of(url: &str) -> Option<PathBuf> {
    let rest = url.strip_prefix("unix:")?;
    let path = rest.strip_prefix("//").unwrap_or(rest);
    Some(PathBuf::from(path))
}

/// Whether a daemon that this user may connect to listens there.
pub fn is_open(path: &str) -> bool {
    std::os::unix::net::UnixStream::connect(path).is_ok()
}
