//! `[view]` of `camlens.toml`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::error::{ConfigError, value};

/// `[view]`: a page that shows the streams' frames live.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ViewConfig {
    /// `HOST:PORT`; port 0 takes a free one. `None`: frames are shown to nobody.
    pub listen: Option<String>,
    /// File of tokens that open the page, as `server.token_file` has them. `None`: that file, where there is one; else
    /// the page is for this machine alone.
    pub token_file: Option<PathBuf>,
    /// Open pages and MJPEG connections; one more is answered with 503.
    pub max_viewers: u32,
    /// Frames that are drawn per second for all viewers together, over all streams.
    pub max_rate_hz: f64,
    /// The longer side of a shown frame, in pixels; larger frames are shrunk.
    pub max_side: u32,
}

impl Default for ViewConfig {
    fn default() -> Self {
        ViewConfig { listen: None, token_file: None, max_viewers: 32, max_rate_hz: 5.0, max_side: 640 }
    }
}

impl ViewConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let ViewConfig { listen: _, token_file: _, max_viewers, max_rate_hz, max_side } = self;
        if !(1..=1024).contains(max_viewers) {
            return Err(value("view.max_viewers", max_viewers, "1 to 1024"));
        }
        if !(0.1..=60.0).contains(max_rate_hz) {
            return Err(value("view.max_rate_hz", max_rate_hz, "0.1 to 60"));
        }
        if !(64..=4096).contains(max_side) {
            return Err(value("view.max_side", max_side, "64 to 4096"));
        }
        Ok(())
    }
}
