//! Definition and execution of an attempt.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::path::Path;

/// `Ok`: the harm is done. `Err`: it was refused, with this errno.
pub type Outcome = io::Result<()>;

#[derive(Clone, Copy)]
pub enum Act {
    /// Read a byte of the file, or a name of the directory.
    Read(&'static str),
    /// Open an existing file for writing. Nothing is written: opening it is the harm.
    Write(&'static str),
    Create(&'static str),
    Socket(&'static str),
    Family(&'static str, i32, i32, i32),
    Call(&'static str, i64, &'static [i64]),
    /// Anything else, by name.
    Do(&'static str, fn(&Context) -> Outcome),
}

/// How it is shown that the attempt would succeed without a sandbox.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// The same attempt, as root outside of every sandbox, succeeds.
    Shown,
    /// It succeeds there if the kernel or the machine has this feature at all.
    IfThere,
    /// Not run outside, for this reason.
    Not(&'static str),
}

#[derive(Clone, Copy)]
pub struct Attempt {
    pub act: Act,
    /// Errnos that count as its refusal.
    pub expect: &'static [i32],
    pub control: Control,
}

pub const fn attempt(act: Act, expect: &'static [i32], control: Control) -> Attempt {
    Attempt { act, expect, control }
}

/// The attempt's surroundings, from the environment set by the test.
pub struct Context {
    pub outside: bool,
}

impl Context {
    pub fn text(&self, name: &str) -> String {
        std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
    }
    pub fn number(&self, name: &str) -> i32 {
        self.text(name).parse().expect("a number")
    }
    /// A process of another command: in the same sandbox inside, of another user outside.
    pub fn victim(&self) -> i64 {
        self.number("H_VICTIM").into()
    }
}

impl Act {
    pub fn name(&self) -> String {
        match self {
            Self::Read(path) => format!("read {path}"),
            Self::Write(path) => format!("write {path}"),
            Self::Create(path) => format!("create in {path}"),
            Self::Socket(path) => format!("connect to {path}"),
            Self::Family(name, ..) => format!("socket {name}"),
            Self::Call(name, ..) | Self::Do(name, _) => (*name).to_owned(),
        }
    }

    pub fn run(&self, context: &Context) -> Outcome {
        match *self {
            Self::Read(path) => read(Path::new(path)),
            Self::Write(path) => OpenOptions::new().write(true).open(path).map(drop),
            Self::Create(dir) => {
                let path = Path::new(dir).join(format!(".ash-hostile-{}", std::process::id()));
                OpenOptions::new().write(true).create_new(true).open(&path)?;
                fs::remove_file(path)
            }
            Self::Socket(path) => std::os::unix::net::UnixStream::connect(path).map(drop),
            Self::Family(_, family, kind, protocol) => {
                call(libc::SYS_socket, &[family.into(), kind.into(), protocol.into()]).map(drop)
            }
            Self::Call(_, number, args) => call(number, args).map(drop),
            Self::Do(_, act) => act(context),
        }
    }
}

/// Reads a byte of a file or a name of a directory. An empty file gives `ENODATA`.
pub fn read(path: &Path) -> Outcome {
    if path.is_dir() {
        let mut names = fs::read_dir(path)?;
        return names.next().map_or_else(|| Err(errno(libc::ENODATA)), |_| Ok(()));
    }
    match File::open(path)?.read(&mut [0])? {
        0 => Err(errno(libc::ENODATA)),
        _ => Ok(()),
    }
}

pub fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

/// A system call whose arguments are numbers, or addresses of memory that outlives the call.
pub fn call(number: i64, args: &[i64]) -> io::Result<i64> {
    let arg = |index: usize| args.get(index).copied().unwrap_or(0);
    // SAFETY: addresses are of live values of the right size. The program harms others, not itself.
    let result = unsafe { libc::syscall(number, arg(0), arg(1), arg(2), arg(3), arg(4), arg(5)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The address of a value, as an argument.
pub fn at<T: ?Sized>(value: &T) -> i64 {
    std::ptr::from_ref(value).cast::<u8>() as i64
}

pub fn cstring(text: &str) -> CString {
    CString::new(text).expect("no zero byte")
}

/// mount(2).
pub fn mount(source: &str, target: &str, kind: &str, flags: u64) -> Outcome {
    let (source, target, kind) = (cstring(source), cstring(target), cstring(kind));
    call(libc::SYS_mount, &[source.as_ptr() as i64, target.as_ptr() as i64, kind.as_ptr() as i64, flags as i64, 0])
        .map(drop)
}

/// Continues only when the harm would be real: `Err(EPERM)` when `held` is false.
pub fn require(held: bool) -> Outcome {
    if held { Ok(()) } else { Err(errno(libc::EPERM)) }
}
