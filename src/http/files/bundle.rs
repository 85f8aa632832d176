//! A workspace as one archive, created while it is sent.
//!
//! ```text
//! blocking thread: walk beneath the root ─> tar ─> gzip or zstd ─> chunks ─> channel (4) ─> the client
//! ```
//!
//! A slow client slows the walk. A client that reads nothing for a minute ends it. Links are
//! archived as links, and holes cost nothing. The archive has no size limit.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::{StreamExt, stream};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use ash_archive::coding::{Coding, Encoder};
use ash_archive::pack;
use ash_model::Skipped;

/// Bytes of one chunk, and how long a client may take for one.
const CHUNK: usize = 64 << 10;
const STALL: Duration = Duration::from_secs(60);

/// Streams the archive of everything below `root`. The permit is released at the end.
///
/// # Errors
/// Failures before the first chunk, which still get a status code. A later failure aborts the
/// transfer, so that a partial archive does not look complete.
pub async fn stream(root: File, coding: Coding, permit: impl Send + 'static) -> io::Result<Body> {
    let (sender, mut chunks) = mpsc::channel::<Bytes>(4);
    let (done, result) = oneshot::channel();
    let runtime = Handle::current();
    let work = move || {
        let _permit = permit;
        let packed = pack(&root, coding, Chunks { sender, runtime, buffer: Vec::with_capacity(CHUNK) });
        if let Err(cause) = &packed
            && cause.kind() != io::ErrorKind::BrokenPipe
        {
            tracing::warn!(error = %cause, "archive of a workspace cut short");
        }
        // The receiver is gone when the client is.
        let _ = done.send(packed);
    };
    let request = tracing::Span::current();
    tokio::task::spawn_blocking(move || request.in_scope(work));
    let end = async {
        let result = result.await.unwrap_or_else(|_| Err(io::Error::other("the archiving thread died")));
        // A pending body lets hyper send its buffer; an error makes it close at once.
        tokio::task::yield_now().await;
        result.err().map(Err)
    };
    let Some(first) = chunks.recv().await else {
        // Even an empty archive has bytes, so this one failed.
        return Err(match end.await {
            Some(Err(cause)) => cause,
            _ => io::Error::other("an archive of no bytes"),
        });
    };
    let chunks = stream::iter([first]).chain(ReceiverStream::new(chunks)).map(Ok);
    Ok(Body::from_stream(chunks.chain(stream::once(end).filter_map(std::future::ready))))
}

/// Writes the archive of everything below `root`.
fn pack(root: &File, coding: Coding, out: impl Write) -> io::Result<()> {
    let (encoder, skipped) = pack::pack(root.as_fd(), Encoder::new(out, coding)?)?;
    if let Some(first) = skipped.entries.first() {
        let Skipped { more, .. } = skipped;
        tracing::info!(path = first.path, reason = first.reason, more, "a workspace was archived without some entries");
    }
    encoder.finish()?.flush()
}

struct Chunks {
    sender: mpsc::Sender<Bytes>,
    runtime: Handle,
    buffer: Vec<u8>,
}

impl Chunks {
    fn send(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = Bytes::from(std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK)));
        let sent = self.runtime.block_on(tokio::time::timeout(STALL, self.sender.send(chunk)));
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the client is gone")),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the client stopped reading")),
        }
    }
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = CHUNK - self.buffer.len();
        let taken = room.min(bytes.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == CHUNK {
            self.send()?;
        }
        Ok(taken)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

#[cfg(test)]
pub mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use rustix::fs::FileType;

    use super::super::beneath;
    use super::*;
    use ash_archive::coding::decoder;
    use ash_archive::read::Entries;

    /// Contents of an archive: path -> content, or `-> target` of a link, or `/`.
    pub fn contents(archive: &[u8]) -> BTreeMap<String, String> {
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(archive));
        tar.entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let path = entry.path().unwrap().display().to_string().trim_end_matches('/').to_owned();
                let value = match entry.header().entry_type() {
                    tar::EntryType::Directory => "/".into(),
                    tar::EntryType::Symlink => format!("-> {}", entry.link_name().unwrap().unwrap().display()),
                    _ => io::read_to_string(&mut entry).unwrap(),
                };
                (path, value)
            })
            .collect()
    }

    #[test]
    fn links_are_archived_and_not_followed() {
        let temp = tempfile::tempdir().unwrap();
        let space = temp.path().join("workspace");
        let long = "n".repeat(150);
        std::fs::create_dir_all(space.join("dir").join(&long)).unwrap();
        std::fs::write(temp.path().join("secret"), "outside").unwrap();
        std::fs::write(space.join("dir").join(&long).join("deep"), "x").unwrap();
        std::fs::write(space.join("empty"), "").unwrap();
        symlink("../secret", space.join("up")).unwrap();
        symlink("/etc", space.join("etc")).unwrap();
        let fifo = rustix::fs::Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(rustix::fs::CWD, space.join("fifo"), FileType::Fifo, fifo, 0).unwrap();
        let mut archive = Vec::new();
        pack(&beneath::root(&space).unwrap(), Coding::Gzip, &mut archive).unwrap();
        let expected = [
            ("dir".to_owned(), "/".to_owned()),
            (format!("dir/{long}"), "/".into()),
            (format!("dir/{long}/deep"), "x".into()),
            ("empty".into(), String::new()),
            ("etc".into(), "-> /etc".into()),
            ("up".into(), "-> ../secret".into()),
            ("ash/comment".into(), "40 comment=not kept: fifo: a named pipe\n".into()),
        ];
        assert_eq!(contents(&archive), BTreeMap::from(expected));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_large_file_arrives_whole_and_a_gone_client_ends_the_work() {
        let temp = tempfile::tempdir().unwrap();
        let mut noise = vec![0u8; 3 << 20];
        getrandom::fill(&mut noise).unwrap();
        std::fs::write(temp.path().join("noise"), &noise).unwrap();
        let limit = std::sync::Arc::new(tokio::sync::Semaphore::new(1));
        let permit = limit.clone().try_acquire_owned().unwrap();
        let body = stream(beneath::root(temp.path()).unwrap(), Coding::Gzip, permit).await.unwrap();
        let archive = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(&archive[..]));
        let mut got = Vec::new();
        tar.entries().unwrap().next().unwrap().unwrap().read_to_end(&mut got).unwrap();
        assert!(got == noise);
        let permit = limit.clone().acquire_owned().await.unwrap();
        drop(stream(beneath::root(temp.path()).unwrap(), Coding::Gzip, permit).await);
        // Available only after the thread has ended.
        let free = tokio::time::timeout(Duration::from_secs(10), limit.acquire()).await;
        assert!(free.is_ok());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_sparse_file_of_a_terabyte_is_sent_in_a_moment() {
        let temp = tempfile::tempdir().unwrap();
        let hole = File::create(temp.path().join("hole")).unwrap();
        hole.set_len(1 << 40).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&hole, b"middle", 1 << 39).unwrap();
        for coding in [Coding::Gzip, Coding::Zstd] {
            let body = stream(beneath::root(temp.path()).unwrap(), coding, ()).await.unwrap();
            let archive = axum::body::to_bytes(body, 1 << 20).await.unwrap();
            let mut tar = Entries::new(decoder(&archive[..]).unwrap());
            let (head, mut content) = tar.next_entry().unwrap().unwrap();
            assert_eq!((head.size, head.sparse, head.stored <= 1 << 16), (1 << 40, true, true));
            let (offset, length) = content.piece().unwrap().unwrap();
            assert!(offset <= 1 << 39 && offset + length > 1 << 39);
        }
    }
}
