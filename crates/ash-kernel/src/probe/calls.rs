//! Raw system calls for the attempts, with numbers and null pointers as arguments.

use std::ffi::CStr;
use std::io;

/// Calls with up to six numbers. A negative result is the errno.
pub fn raw(number: i64, args: &[i64]) -> io::Result<i64> {
    let arg = |index: usize| args.get(index).copied().unwrap_or(0);
    // SAFETY: callers pass only numbers and null pointers (see `attempts`), so the kernel has no
    // memory to write to.
    let result = unsafe { libc::syscall(number, arg(0), arg(1), arg(2), arg(3), arg(4), arg(5)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// mount(2) of a file system type on a path.
pub fn mount(kind: &CStr, path: &CStr) -> io::Result<()> {
    // SAFETY: three C strings that outlive the call, and no data.
    let done = unsafe { libc::mount(kind.as_ptr(), path.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A page that is written first and then executable, as in a JIT compiler.
pub fn make_code() -> io::Result<()> {
    const LENGTH: usize = 4096;
    // SAFETY: a new private anonymous mapping, written within its bounds, and removed here.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let page = libc::mmap(std::ptr::null_mut(), LENGTH, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        page.cast::<u8>().write(0xC3);
        let done = libc::mprotect(page, LENGTH, libc::PROT_READ | libc::PROT_EXEC);
        let error = io::Error::last_os_error();
        libc::munmap(page, LENGTH);
        if done == 0 { Ok(()) } else { Err(error) }
    }
}
