//! Structured logs on standard error, with a filter that can be changed while the process runs.

use std::io::{self, IsTerminal};
use std::sync::OnceLock;

use thiserror::Error;
use tracing::Subscriber;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

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
        "`{filter}` is no log filter: {cause}; allowed are levels (error, warn, info, debug, trace, off) and \
         target=level, separated by commas"
    )]
    Filter { filter: String, cause: String },
    #[error("a log is already installed in this process")]
    AlreadyInstalled,
    #[error("no log is installed in this process")]
    NotInstalled,
}

/// The filter of the process's log, once there is one.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Sends the process's log to standard error. `filter`: a level, or `target=level` pairs separated by commas.
pub fn install(filter: &str, format: LogFormat) -> Result<(), LogError> {
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let (filter, handle) = reload::Layer::new(env_filter(filter)?);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Text => registry.with(text(colours, io::stderr)).try_init(),
        LogFormat::Json => registry.with(json(io::stderr)).try_init(),
    }
    .map_err(|_| LogError::AlreadyInstalled)?;
    FILTER.set(handle).map_err(|_| LogError::AlreadyInstalled)
}

/// What is logged now; `None` when nothing was installed.
pub fn filter() -> Option<String> {
    FILTER.get()?.with_current(ToString::to_string).ok()
}

/// Logs something else from now on.
///
/// # Errors
/// A filter that is none, or a process without a log.
pub fn set_filter(filter: &str) -> Result<(), LogError> {
    let new = env_filter(filter)?;
    FILTER.get().and_then(|handle| handle.reload(new).ok()).ok_or(LogError::NotInstalled)
}

fn env_filter(filter: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::try_new(filter).map_err(|error| LogError::Filter { filter: filter.to_owned(), cause: error.to_string() })
}

fn text<S, W>(colours: bool, writer: W) -> impl Layer<S>
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    tracing_subscriber::fmt::layer().with_ansi(colours).with_writer(writer)
}

fn json<S, W>(writer: W) -> impl Layer<S>
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(writer)
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
        let filter = env_filter("info").expect("a filter");
        let guard = tracing_subscriber::registry().with(filter).with(json(move || writer.clone())).set_default();
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
        let filter = env_filter("warn,camlens=debug").expect("a filter");
        let log = text(false, move || writer.clone());
        let guard = tracing_subscriber::registry().with(filter).with(log).set_default();
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
