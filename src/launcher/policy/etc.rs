//! The sandbox's `/etc`: a few files written for it, and a few of the host's that say nothing about the host.

use crate::launcher::init_protocol::{INIT_UID, PAYLOAD_UID};

/// The host's, bound read-only where they exist. Each with the reason.
pub const FROM_HOST: &[(&str, &str)] = &[
    ("/etc/ld.so.cache", "the loader finds libraries outside its default directories"),
    ("/etc/ssl/certs", "trusted certificates; not /etc/ssl/private"),
    ("/etc/ssl/openssl.cnf", "openssl's defaults"),
    ("/etc/alternatives", "links such as /usr/bin/cc -> /etc/alternatives/cc"),
    ("/etc/localtime", "the time zone"),
    ("/etc/services", "names of ports"),
    ("/etc/protocols", "names of protocols"),
    ("/etc/mime.types", "python's and node's file types"),
];

/// Name in `/etc` and contents.
pub fn files(hostname: &str) -> Vec<(&'static str, String)> {
    vec![
        (
            "passwd",
            format!(
                "root:x:0:0:root:/nonexistent:/usr/sbin/nologin\n\
                 ash-init:x:{INIT_UID}:{INIT_UID}:init of the sandbox:/nonexistent:/usr/sbin/nologin\n\
                 agent:x:{PAYLOAD_UID}:{PAYLOAD_UID}:agent:/home/agent:/bin/bash\n\
                 nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
            ),
        ),
        ("group", format!("root:x:0:\ntty:x:5:\nash-init:x:{INIT_UID}:\nagent:x:{PAYLOAD_UID}:\nnogroup:x:65534:\n")),
        ("hostname", format!("{hostname}\n")),
        ("hosts", format!("127.0.0.1 localhost {hostname}\n::1 localhost ip6-localhost\n")),
        (
            "resolv.conf",
            "# No name server: the way out is the proxy of HTTPS_PROXY, which resolves names itself.\n".into(),
        ),
        (
            "nsswitch.conf",
            "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\nprotocols: files\n".into(),
        ),
        // git refuses a directory of another owner; files copied in by other means may appear so.
        ("gitconfig", "[safe]\n\tdirectory = *\n".into()),
        ("shells", "/bin/sh\n/bin/bash\n".into()),
    ]
}
