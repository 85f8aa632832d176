//! ashd: the daemon.

fn main() {}
