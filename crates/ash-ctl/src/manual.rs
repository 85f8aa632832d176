//! `ashctl manual`: the page ashctl(1), generated from the `--help` texts.
//!
//! ```text
//!   clap's tree of commands -> roff (man(7) macros): NAME SYNOPSIS DESCRIPTION OPTIONS COMMANDS
//!                              FILES SEE ALSO
//! ```

use std::fmt::Write;

use clap::{Arg, Command};

/// Sections that the command tree does not contain.
const REST: &str = "\
.SH FILES
.TP
.I /var/lib/ashd/initial\\-api\\-key
The first API key, used when no other is given. Root and ashd can read it.
.TP
.I /run/ashd/ashd.sock
The unix socket, on which root and members of group ashd need no key.
.SH SEE ALSO
.BR ashd (8),
.BR ash\\-launcher (8),
.BR ashd.toml (5)
";

pub fn page(mut root: Command) -> String {
    root.build();
    let mut out = String::with_capacity(32 << 10);
    let name = root.get_name().to_owned();
    let about = root.get_about().map(ToString::to_string).unwrap_or_default();
    let version = root.get_version().unwrap_or_default();
    line(&mut out, &format!(".TH {} 1 \"\" \"ashd {version}\" \"Commands\"", name.to_uppercase()));
    line(&mut out, &format!(".SH NAME\n{} \\- {}", escape(&name), escape(about.trim_end_matches('.'))));
    line(&mut out, &format!(".SH SYNOPSIS\n.B {}\n[options] command [arguments]", escape(&name)));
    line(&mut out, ".SH DESCRIPTION");
    sentence(&mut out, &about);
    line(&mut out, ".SH OPTIONS\nOptions can precede or follow the command.");
    root.get_arguments().filter(|arg| !arg.is_hide_set()).for_each(|arg| argument(&mut out, arg));
    line(&mut out, ".SH COMMANDS");
    for command in root.get_subcommands().filter(|command| !command.is_hide_set()) {
        commands(&mut out, command, "");
    }
    if let Some(after) = root.get_after_long_help().or(root.get_after_help()) {
        line(&mut out, ".SH NOTES");
        verbatim(&mut out, &after.to_string());
    }
    out.push_str(REST);
    out
}

/// A command and its subcommands, each with its own heading.
fn commands(out: &mut String, command: &Command, above: &str) {
    let name = format!("{above}{}", command.get_name());
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    let shown = |arg: &&Arg| !arg.is_hide_set() && !arg.is_global_set() && arg.get_id() != "help";
    if command.has_subcommands() {
        line(out, &format!(".SS {}", escape(&name)));
        sentence(out, &about);
        let below = command.get_subcommands().filter(|below| !below.is_hide_set() && below.get_name() != "help");
        below.for_each(|below| commands(out, below, &format!("{name} ")));
        return;
    }
    let words: Vec<String> = command.get_arguments().filter(shown).map(usage).collect();
    line(out, &format!(".SS \"{} {}\"", escape(&name), escape(&words.join(" ")).replace('"', "\\(dq")));
    sentence(out, &about);
    command.get_arguments().filter(shown).filter(|arg| arg.get_help().is_some()).for_each(|arg| argument(out, arg));
    if let Some(after) = command.get_after_long_help().or(command.get_after_help()) {
        verbatim(out, &after.to_string());
    }
}

/// The argument as a word of the synopsis.
fn usage(arg: &Arg) -> String {
    let value = value(arg);
    let word = match (arg.get_long(), value.as_str()) {
        (Some(long), "") => format!("--{long}"),
        (Some(long), value) => format!("--{long} {value}"),
        (None, value) => value.to_owned(),
    };
    if arg.is_required_set() { word } else { format!("[{word}]") }
}

/// The value's placeholder; empty for a switch.
fn value(arg: &Arg) -> String {
    if !arg.get_action().takes_values() {
        return String::new();
    }
    let names = arg.get_value_names().unwrap_or_default();
    let name = names.first().map_or_else(|| arg.get_id().as_str().to_uppercase(), ToString::to_string);
    let many = arg.get_num_args().is_some_and(|range| range.max_values() > 1);
    if many { format!("{name}...") } else { name }
}

fn argument(out: &mut String, arg: &Arg) {
    let mut names: Vec<String> = arg.get_short().map(|short| format!("-{short}")).into_iter().collect();
    names.extend(arg.get_long().map(|long| format!("--{long}")));
    let value = value(arg);
    let head = format!("{} {value}", names.join(", "));
    line(out, &format!(".TP\n.B {}", escape(head.trim()).replace('"', "\\(dq")));
    let mut text = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    end_sentence(&mut text);
    let choices: Vec<String> = arg.get_possible_values().iter().map(|choice| choice.get_name().to_owned()).collect();
    if !choices.is_empty() && arg.get_action().takes_values() {
        write!(text, " One of: {}.", choices.join(", ")).expect("a String takes all that is written");
    }
    let defaults: Vec<&str> = arg.get_default_values().iter().filter_map(|value| value.to_str()).collect();
    if !defaults.is_empty() && arg.get_action().takes_values() {
        write!(text, " Default: {}.", defaults.join(" ")).expect("a String takes all that is written");
    }
    if let Some(name) = arg.get_env().and_then(|name| name.to_str()) {
        write!(text, " Variable: {name}.").expect("a String takes all that is written");
    }
    paragraphs(out, text.trim());
}

/// clap removes the last full stop for `--help`.
fn end_sentence(text: &mut String) {
    if !text.is_empty() && !text.ends_with(['.', ':', '!', '?']) {
        text.push('.');
    }
}

fn sentence(out: &mut String, text: &str) {
    let mut text = text.to_owned();
    end_sentence(&mut text);
    paragraphs(out, &text);
}

fn paragraphs(out: &mut String, text: &str) {
    for (n, part) in text.split("\n\n").filter(|part| !part.trim().is_empty()).enumerate() {
        if n > 0 {
            line(out, ".IP");
        }
        part.lines().for_each(|text| line(out, &escape(text.trim_start())));
    }
}

/// Keeps line breaks and columns.
fn verbatim(out: &mut String, text: &str) {
    line(out, ".PP\n.nf");
    text.lines().for_each(|text| line(out, &escape(text)));
    line(out, ".fi");
}

fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push('\n');
}

/// Escapes text for roff: no escapes, no requests, hyphens that can be copied into a shell.
fn escape(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-");
    if escaped.starts_with(['.', '\'']) { format!("\\&{escaped}") } else { escaped }
}

#[cfg(test)]
mod tests {
    use super::super::cli::Cli;
    use super::*;
    use clap::CommandFactory;

    fn missing(page: &str, command: &Command, above: &str, found: &mut Vec<String>) {
        for below in command.get_subcommands().filter(|below| !below.is_hide_set() && below.get_name() != "help") {
            let name = format!("{above}{}", below.get_name());
            if !page.lines().any(|line| {
                line.strip_prefix(".SS ").is_some_and(|rest| rest.trim_start_matches('"').starts_with(&escape(&name)))
            }) {
                found.push(name.clone());
            }
            for arg in below.get_arguments().filter(|arg| !arg.is_hide_set()) {
                if let Some(long) = arg.get_long()
                    && !page.contains(&escape(&format!("--{long}")))
                {
                    found.push(format!("{name} --{long}"));
                }
            }
            missing(page, below, &format!("{name} "), found);
        }
    }

    #[test]
    fn the_page_has_every_command_and_every_option() {
        let page = page(Cli::command());
        let mut found = Vec::new();
        missing(&page, &Cli::command(), "", &mut found);
        assert!(found.is_empty(), "not in the manual: {found:?}");
        for part in [".SH NAME\nashctl \\- ", ".SS \"session create ", "Variable: ASH_URL.", "Exit codes"] {
            assert!(page.contains(part), "{part:?} is not in\n{page}");
        }
        // A line that begins with a point and an unknown macro would vanish.
        let macros = [".TH", ".SH", ".SS", ".TP", ".B", ".BR", ".I", ".IP", ".PP", ".nf", ".fi"];
        let strange = page.lines().find(|line| {
            line.starts_with(['.', '\'']) && !macros.contains(&line.split(' ').next().unwrap_or_default())
        });
        assert_eq!(strange, None);
    }

    #[test]
    fn text_is_never_a_request() {
        assert_eq!(escape(".git \\ -o"), "\\&.git \\e \\-o");
        assert_eq!(escape("'x"), "\\&'x");
    }
}
