//! A workspace as one tar.gz, made while it is sent.
//!
//! ```text
//! blocking thread: walk beneath the root ─> tar ─> gzip ─> chunks ─> channel (4) ─> the client
//! ```
//!
//! A client that reads slowly slows the walk; one that stops reading for a minute ends it. Links are archived as links.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::{Body, Bytes};
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::{StreamExt, stream};
use rustix::fs::{AtFlags, Dir, FileType, Stat};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use super::beneath;

/// Bytes of one chunk, and how long a client may take for one.
const CHUNK: usize = 64 << 10;
const STALL: Duration = Duration::from_secs(60);
/// Bytes of the files of one archive, holes included. A sparse file costs its owner nothing and would keep a thread busy
/// for hours; past the bound the archive breaks off, which the journal explains.
const MAX_TOTAL: u64 = 64 << 30;

/// The archive of everything below `root`, as a body. The permit is given back when it is done.
///
/// # Errors
/// What stopped it before its first chunk, so that it can still be answered by a code. Later the transfer breaks off: an
/// archive that ends early must not look like a whole one.
pub async fn stream(root: File, permit: OwnedSemaphorePermit) -> io::Result<Body> {
    let (sender, mut chunks) = mpsc::channel::<Bytes>(4);
    let (done, result) = oneshot::channel();
    let runtime = Handle::current();
    let work = move || {
        let _permit = permit;
        let packed = pack(&root, Chunks { sender, runtime, buffer: Vec::with_capacity(CHUNK) });
        if let Err(cause) = &packed
            && cause.kind() != io::ErrorKind::BrokenPipe
        {
            tracing::warn!(error = %cause, "a workspace could not be archived to its end");
        }
        // Nobody listens when the client is gone.
        let _ = done.send(packed);
    };
    let request = tracing::Span::current();
    tokio::task::spawn_blocking(move || request.in_scope(work));
    let end = async {
        let result = result.await.unwrap_or_else(|_| Err(io::Error::other("the archiving thread died")));
        // A pending body lets hyper send what it holds; an error makes it close at once.
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

/// Writes the tar.gz of everything below `root`.
fn pack(root: &File, out: impl Write) -> io::Result<()> {
    let mut tar = tar::Builder::new(GzEncoder::new(out, Compression::fast()));
    let mut todo = vec![PathBuf::new()];
    let mut left = MAX_TOTAL;
    while let Some(directory) = todo.pop() {
        // Removed, or swapped for a link, since it was seen.
        let Ok(open) = beneath::directory(root, &directory) else { continue };
        for entry in Dir::read_from(&open)? {
            let Ok(entry) = entry else { break };
            let name = Path::new(std::ffi::OsStr::from_bytes(entry.file_name().to_bytes()));
            if name == Path::new(".") || name == Path::new("..") {
                continue;
            }
            let Ok(stat) = rustix::fs::statat(&open, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            let path = directory.join(name);
            let mut header = header(&stat);
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_size(0);
                    tar.append_data(&mut header, &path, io::empty())?;
                    if path.components().count() < 128 {
                        todo.push(path);
                    }
                }
                FileType::RegularFile => {
                    let Ok((file, size)) = beneath::read(&open, name) else { continue };
                    left = left.checked_sub(size).ok_or_else(|| {
                        let why = format!("its files have more than {} GiB, holes included", MAX_TOTAL >> 30);
                        io::Error::new(io::ErrorKind::FileTooLarge, why)
                    })?;
                    header.set_size(size);
                    // Exactly as many bytes as the header says, whatever its owner does to it meanwhile.
                    tar.append_data(&mut header, &path, file.chain(io::repeat(0)).take(size))?;
                }
                FileType::Symlink => {
                    let Ok(target) = rustix::fs::readlinkat(&open, name, Vec::new()) else { continue };
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_size(0);
                    tar.append_link(&mut header, &path, std::ffi::OsStr::from_bytes(target.to_bytes()))?;
                }
                _ => {}
            }
        }
    }
    tar.into_inner()?.finish()?.flush()
}

/// Mode and time; no owner, since ids mean nothing on another host.
fn header(stat: &Stat) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(stat.st_mode & 0o777);
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header
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
    use std::os::unix::fs::symlink;

    use super::*;

    /// What an archive holds: path -> content, or `-> target` of a link, or `/`.
    pub fn contents(archive: &[u8]) -> BTreeMap<String, String> {
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(archive));
        tar.entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let path = entry.path().unwrap().display().to_string();
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
        pack(&beneath::root(&space).unwrap(), &mut archive).unwrap();
        let expected = [
            ("dir".to_owned(), "/".to_owned()),
            (format!("dir/{long}"), "/".into()),
            (format!("dir/{long}/deep"), "x".into()),
            ("empty".into(), String::new()),
            ("etc".into(), "-> /etc".into()),
            ("up".into(), "-> ../secret".into()),
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
        let body = stream(beneath::root(temp.path()).unwrap(), permit).await.unwrap();
        let archive = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(&archive[..]));
        let mut got = Vec::new();
        tar.entries().unwrap().next().unwrap().unwrap().read_to_end(&mut got).unwrap();
        assert!(got == noise);
        let permit = limit.clone().acquire_owned().await.unwrap();
        drop(stream(beneath::root(temp.path()).unwrap(), permit).await);
        // Comes back only when the thread has ended.
        let free = tokio::time::timeout(Duration::from_secs(10), limit.acquire()).await;
        assert!(free.is_ok());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_cannot_be_archived_is_said_or_breaks_off() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("dir")).unwrap();
        let hole = File::create(temp.path().join("dir/hole")).unwrap();
        hole.set_len(MAX_TOTAL + 1).unwrap();
        let limit = std::sync::Arc::new(tokio::sync::Semaphore::new(1));
        let begin = || async {
            let permit = limit.clone().acquire_owned().await.unwrap();
            stream(beneath::root(temp.path()).unwrap(), permit).await
        };
        let cause = begin().await.unwrap_err();
        assert_eq!(cause.kind(), io::ErrorKind::FileTooLarge, "{cause}");
        // The same after more than the channel holds, to a client that reads late.
        let mut noise = vec![0u8; 3 << 20];
        getrandom::fill(&mut noise).unwrap();
        std::fs::write(temp.path().join("noise"), &noise).unwrap();
        let body = begin().await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        let cause = axum::body::to_bytes(body, usize::MAX).await.unwrap_err();
        assert!(format!("{cause:?}").contains("FileTooLarge"), "{cause:?}");
    }
}
