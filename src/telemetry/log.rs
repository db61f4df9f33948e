//! Structured logs on standard error.

use std::io::{self, IsTerminal};

use thiserror::Error;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people: time, level, target, message, fields.
    #[default]
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// Why logging could not start.
#[derive(Debug, Error)]
pub enum LogError {
    #[error(
        "`{filter}` is no log filter: {cause}; allowed are levels (error, warn, info, debug, trace, off) and target=level, separated by commas"
    )]
    Filter { filter: String, cause: String },
    #[error("a log is already installed in this process")]
    AlreadyInstalled,
}

/// Sends the process's log to standard error. `filter`: a level, or `target=level` pairs separated by commas.
pub fn install(filter: &str, format: LogFormat) -> Result<(), LogError> {
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    match format {
        LogFormat::Text => text(filter, colours, io::stderr)?.try_init(),
        LogFormat::Json => json(filter, io::stderr)?.try_init(),
    }
    .map_err(|_| LogError::AlreadyInstalled)
}

fn env_filter(filter: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::try_new(filter).map_err(|error| LogError::Filter { filter: filter.to_owned(), cause: error.to_string() })
}

fn text<W>(filter: &str, colours: bool, writer: W) -> Result<impl SubscriberInitExt + use<W>, LogError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = env_filter(filter)?;
    Ok(tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(writer).finish())
}

fn json<W>(filter: &str, writer: W) -> Result<impl SubscriberInitExt + use<W>, LogError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = env_filter(filter)?;
    Ok(tracing_subscriber::fmt().json().flatten_event(true).with_env_filter(filter).with_writer(writer).finish())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no test panics while it holds this").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Page {
        fn written(&self) -> String {
            String::from_utf8(self.0.lock().expect("no test panics while it holds this").clone()).expect("UTF-8")
        }
    }

    #[test]
    fn a_json_line_is_one_object_with_its_fields() {
        let page = Page::default();
        let writer = page.clone();
        let guard = json("info", move || writer.clone()).expect("a filter").set_default();
        tracing::info!(model = "lite0", port = 8033, "serving");
        tracing::debug!("below the filter");
        drop(guard);
        let line: serde_json::Value = serde_json::from_str(&page.written()).expect("one JSON object");
        assert_eq!(
            (&line["message"], &line["model"], &line["port"]),
            (&"serving".into(), &"lite0".into(), &8033.into())
        );
        assert_eq!(line["level"], "INFO");
    }

    #[test]
    fn a_text_line_without_colours_has_no_escapes() {
        let page = Page::default();
        let writer = page.clone();
        let guard = text("warn,camlens=debug", false, move || writer.clone()).expect("a filter").set_default();
        tracing::debug!(sequence = 7, "answered");
        drop(guard);
        assert!(page.written().contains("answered sequence=7"), "{}", page.written());
        assert!(!page.written().contains('\u{1b}'));
    }

    #[test]
    fn a_bad_filter_says_what_is_allowed() {
        let error = env_filter("camlens=loud").expect_err("no such level").to_string();
        assert!(error.contains("camlens=loud") && error.contains("debug"), "{error}");
    }
}
