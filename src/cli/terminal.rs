//! The terminal: colours, progress and Ctrl-C. Output that is not to a terminal is plain text.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Whether standard error may be coloured: a terminal, and `NO_COLOR` is not set.
pub fn colours_on_stderr() -> bool {
    io::stderr().is_terminal() && !no_color()
}

/// Whether standard output may be coloured: a terminal, and `NO_COLOR` is not set.
pub fn colours_on_stdout() -> bool {
    io::stdout().is_terminal() && !no_color()
}

/// Whether `NO_COLOR` is set and not empty: <https://no-color.org>.
fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// Width of the terminal on standard output, in columns; `None` if it is not a terminal or has no known width.
pub fn columns() -> Option<usize> {
    let (width, _) = terminal_size::terminal_size_of(io::stdout())?;
    Some(usize::from(width.0)).filter(|&columns| columns > 0)
}

/// Whether the locale's character set is UTF-8.
pub fn speaks_utf8() -> bool {
    is_utf8(["LC_ALL", "LC_CTYPE", "LANG"].map(|name| std::env::var(name).ok()))
}

/// The first variable that is set and not empty names the locale; without any, it is `C`.
fn is_utf8(locale: [Option<String>; 3]) -> bool {
    let name = locale.into_iter().flatten().find(|value| !value.is_empty()).unwrap_or_default().to_lowercase();
    name.contains("utf-8") || name.contains("utf8")
}

/// Emphasis for standard output.
#[derive(Debug, Clone, Copy)]
pub struct Ink {
    colours: bool,
}

impl Ink {
    pub fn for_stdout() -> Self {
        Ink { colours: colours_on_stdout() }
    }

    #[cfg(test)]
    pub fn plain() -> Self {
        Ink { colours: false }
    }

    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }

    pub fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colours { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// A progress bar on standard error; hidden if that is not a terminal, or if `quiet`. `total` is `None` if it is
/// unknown.
pub fn progress(total: Option<u64>, quiet: bool) -> ProgressBar {
    if quiet || !io::stderr().is_terminal() {
        return ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden());
    }
    let template = match total {
        Some(_) => "{bar:32} {pos}/{len} {msg} {elapsed}",
        None => "{spinner} {pos} {msg} {elapsed}",
    };
    // The templates are constants and parse; otherwise the bar has indicatif's own style.
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr()).with_style(style)
}

/// The first Ctrl-C cancels `stop`, which ends the sending of frames; the second ends the process with exit code 130,
/// and SIGTERM ends it with 143.
pub fn stop_when_interrupted(stop: CancellationToken) {
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stop.cancel();
        }
        if tokio::signal::ctrl_c().await.is_ok() {
            std::process::exit(130);
        }
    });
    // Process 1 of a container ignores SIGTERM unless it has a handler: a Job's pod would outlive its eviction by the
    // whole grace period. What is unfinished must not pass for done.
    tokio::spawn(async {
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            terminate.recv().await;
            std::process::exit(143);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_ink_leaves_text_alone() {
        assert_eq!(Ink::plain().bad("no"), "no");
        assert_eq!(Ink { colours: true }.bold("yes"), "\u{1b}[1myes\u{1b}[0m");
    }

    #[test]
    fn the_first_variable_that_is_set_names_the_character_set() {
        let set = |values: [&str; 3]| is_utf8(values.map(|value| (value != "-").then(|| value.to_owned())));
        assert!(set(["C.UTF-8", "-", "-"]) && set(["-", "", "de_DE.utf8"]) && set(["", "en_US.UTF-8", "C"]));
        assert!(!set(["-", "-", "-"]) && !set(["C", "-", "en_US.UTF-8"]) && !set(["-", "-", "de_DE.ISO-8859-1"]));
    }

    #[test]
    fn a_quiet_progress_bar_is_hidden() {
        assert!(progress(Some(3), true).is_hidden());
    }
}
