//! The sandbox's `/etc`: generated files, and files of the host that programs of Debian's packages
//! need and that contain no secrets.

use ash_protocol::init::{INIT_UID, PAYLOAD_UID};

/// Files of the host with reasons. They are shown read-only if they exist, belong to root and are
/// readable by everyone. A `*` matches any text within a path component.
///
/// Excluded are files that can contain a password, a token or the name of a private server:
/// `environment`, `profile.d`, `bash.bashrc`, `pip.conf`, `npmrc`, `wgetrc`, `gemrc`, `apt`,
/// `maven/settings.xml`, `php.ini`, `Renviron.site`, `gitconfig`, `ssh`, `krb5.conf`.
pub const FROM_HOST: &[(&str, &str)] = &[
    ("/etc/ld.so.cache", "the loader finds libraries outside its default directories"),
    ("/etc/ld.so.conf", "ld finds libraries that a library needs (ld(1), -rpath-link)"),
    ("/etc/ld.so.conf.d", "the same"),
    ("/etc/ssl/certs", "trusted certificates, java's too; not /etc/ssl/private"),
    ("/etc/ssl/openssl.cnf", "openssl's defaults"),
    ("/etc/alternatives", "links such as /usr/bin/cc -> /etc/alternatives/cc"),
    ("/etc/localtime", "the time zone"),
    ("/etc/timezone", "the time zone, as java and node read it"),
    ("/etc/services", "names of ports"),
    ("/etc/protocols", "names of protocols"),
    ("/etc/mime.types", "python's and node's file types"),
    ("/etc/os-release", "which distribution this is: installers, playwright, rustup, node-gyp"),
    ("/etc/debian_version", "the same, for older programs"),
    ("/etc/lsb-release", "the same, for lsb_release and Ubuntu's programs"),
    ("/etc/java-*-openjdk", "java stops without its settings, which its own directory links to here"),
    ("/etc/maven/m2.conf", "mvn finds its classes; settings.xml can hold passwords and is not shown"),
    ("/etc/maven/logging", "mvn's log format"),
    ("/etc/fonts", "fontconfig: fc-list, browsers, LibreOffice, java's windows, ImageMagick"),
    ("/etc/python3", "which python3 is the default: py3compile"),
    ("/etc/python3.*", "sitecustomize.py of the library is a link to here"),
    ("/etc/perl", "on perl's module path: Net::Config, sitecustomize.pl"),
    ("/etc/php/*/mods-available", "php's extensions"),
    ("/etc/php/*/cli/conf.d", "which of them the command line loads; php.ini can hold passwords and is not shown"),
    ("/etc/vim/vimrc", "vim's defaults"),
    ("/etc/xml", "catalogues of DTDs: xmllint, xsltproc, docbook"),
    ("/etc/texmf", "TeX's settings: latex, pdflatex"),
    ("/etc/ImageMagick-*", "convert reads its policy, types and fonts"),
    ("/etc/paperspecs", "sizes of paper: ghostscript, TeX, R"),
    ("/etc/R/Renviron", "R's start; Renviron.site can hold tokens and is not shown"),
    ("/etc/R/ldpaths", "the same"),
    ("/etc/R/Makeconf", "the same"),
    ("/etc/R/repositories", "the same"),
    ("/etc/gdb", "gdb's start"),
    ("/etc/dotnet", "where dotnet is installed"),
    ("/etc/OpenCL", "which OpenCL drivers there are"),
    ("/etc/pki/tls/certs", "trusted certificates, where Fedora's programs look"),
    ("/etc/pki/ca-trust/extracted", "the same"),
    ("/etc/pki/java", "the same, for java"),
    ("/etc/crypto-policies", "Fedora's openssl.cnf includes it"),
];

/// Allowed targets of the host's `/etc` entries. Nothing else of the host is in the sandbox.
pub const LEADS_TO: [&str; 2] = ["/etc", "/usr"];

/// The sandbox already contains this directory. Entries that lead to it become links, which cost
/// less than mounts.
pub const THERE: &str = "/usr";

/// File name in `/etc` and content. `machine` identifies this sandbox like /etc/machine-id
/// (machine-id(5)): 32 digits.
pub fn files(hostname: &str, machine: &str) -> Vec<(&'static str, String)> {
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
        // D-Bus, systemd's library, browsers and Java's licence checks require one. The host's own
        // is not shown.
        ("machine-id", format!("{machine}\n")),
        ("hosts", format!("127.0.0.1 localhost {hostname}\n::1 localhost ip6-localhost\n")),
        ("resolv.conf", "# No name server: the network of a sandbox is its own loopback.\n".into()),
        (
            "nsswitch.conf",
            "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\nprotocols: files\n".into(),
        ),
        // git refuses a directory of another owner, and copied files can have one.
        ("gitconfig", "[safe]\n\tdirectory = *\n".into()),
        ("shells", "/bin/sh\n/bin/bash\n".into()),
    ]
}
