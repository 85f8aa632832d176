//! The sandbox's `/etc`: packages work, and no secret of the host is visible.

use std::path::Path;

use ash_protocol::init::Exit;

use crate::sandbox::Sandbox;

pub const TESTS: &[crate::Test] = &[
    ("etc::packages_of_the_host_work", packages_of_the_host_work),
    ("etc::nothing_secret_of_the_host_is_there", nothing_secret_of_the_host_is_there),
];

/// agent-infra#397: programs whose settings are links to /etc. Program, command, its output.
const PACKAGES: &[(&str, &str, &str)] = &[
    (
        "/usr/bin/java",
        "printf 'public class H{public static void main(String[] x)throws Exception{System.out.println(\
         java.security.MessageDigest.getInstance(\"SHA-256\").getAlgorithm());}}' > H.java; java H.java",
        "SHA-256",
    ),
    ("/usr/bin/fc-list", "fc-match sans >/dev/null && fc-list 2>&1 | grep -c 'Cannot load' ; echo listed", "listed"),
    ("/usr/bin/mvn", "mvn -v 2>&1 | grep -c 'Maven home'", "1"),
    (
        "/usr/bin/python3",
        "/usr/bin/python3 -c 'import mimetypes; print(mimetypes.guess_type(\"a.odt\")[0])'",
        "application/vnd.oasis.opendocument.text",
    ),
    (
        "/usr/bin/python3",
        "/usr/bin/python3 -c 'import platform; print(len(platform.freedesktop_os_release()) > 3)'",
        "True",
    ),
    ("/usr/bin/perl", "perl -MNet::Config -e 'print ref(\\%NetConfig), \"\\n\"'", "HASH"),
    (
        "/usr/bin/openssl",
        "openssl version -d >/dev/null && ls /etc/ssl/certs/ca-certificates.crt",
        "/etc/ssl/certs/ca-certificates.crt",
    ),
    ("/usr/bin/git", "cd /tmp && git init -q x && echo made", "made"),
    ("/bin/date", "TZ=Asia/Tokyo date +%Z", "JST"),
    ("/bin/sh", ". /etc/os-release && test -n \"$ID\" && echo known", "known"),
    ("/bin/sh", "wc -c < /etc/machine-id", "33"),
];

fn packages_of_the_host_work() {
    let mut sandbox = Sandbox::new();
    let mut ran = 0;
    for (number, (program, command, wanted)) in (1..).zip(PACKAGES) {
        if !Path::new(program).exists() {
            continue;
        }
        let ended = sandbox.sh(number, command);
        assert_eq!(ended.exit, Exit::Code(0), "{command}: {}{}", ended.out, ended.err);
        assert_eq!(ended.out.lines().last(), Some(*wanted), "{command}: {}{}", ended.out, ended.err);
        ran += 1;
    }
    assert!(ran >= 4, "only {ran} of the programs are on this host");
}

fn nothing_secret_of_the_host_is_there() {
    let mut sandbox = Sandbox::new();
    let absent = "shadow gshadow sudoers ssh ssl/private ashd apt environment profile.d bash.bashrc pip.conf npmrc wgetrc gemrc \
                  krb5.conf maven/settings.xml subuid subgid fstab crontab systemd default security pam.d";
    let ended = sandbox.sh(1, &format!("cd /etc && ls -d {absent} 2>/dev/null; exit 0"));
    assert_eq!(ended.out, "", "of the host");
    // The payload can read every file in it and write none: files closed to it on the host are
    // absent.
    let ended = sandbox.sh(2, "find /etc/ -type f ! -readable; find /etc/ -writable ! -type l; find /etc/ -perm /6000");
    assert_eq!(ended.out, "");
    let machine = sandbox.sh(3, "cat /etc/machine-id").out;
    assert_eq!(machine.trim(), sandbox.ground.id.simple().to_string());
    let hosts = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    assert!(machine != hosts && machine.len() == 33, "{machine}");
}
