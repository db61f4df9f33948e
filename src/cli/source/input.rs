//! An input of ffmpeg: a file, a device or an address.

use std::path::Path;

use super::file_name;

/// Schemes of addresses that are cameras. An `http://` address may be a file.
const LIVE_SCHEMES: [&str; 9] = ["rtsp", "rtsps", "rtp", "srtp", "udp", "srt", "rtmp", "rtmps", "tcp"];

/// How a video or a camera is read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct VideoSettings {
    /// Largest number of frames to take per second of the source's own time.
    pub fps: Option<f64>,
    /// Largest width of a frame, in pixels.
    pub width: Option<u32>,
    /// Options of ffmpeg for the input, by name.
    pub options: Vec<(String, String)>,
    /// Whether the input is a live camera. `None`: its address tells.
    pub live: Option<bool>,
}

impl VideoSettings {
    /// The name of the flag that only a video or a camera can have; `None`: none is set.
    pub fn flag_of_a_video(&self) -> Option<&'static str> {
        let VideoSettings { fps, width, options, live } = self;
        let set = [
            (fps.is_some(), "--fps"),
            (width.is_some(), "--width"),
            (!options.is_empty(), "--ffmpeg-option"),
            (live.is_some(), "--live"),
        ];
        set.into_iter().find_map(|(is_set, flag)| is_set.then_some(flag))
    }
}

/// An input of ffmpeg.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// As ffmpeg gets it. It may contain a password.
    pub address: String,
    /// The address without user, password and query, for people, logs and the server.
    pub name: String,
    pub is_live: bool,
    pub settings: VideoSettings,
}

impl Input {
    pub fn new(address: &str, settings: VideoSettings) -> Self {
        let is_live = settings.live.unwrap_or_else(|| is_camera(address));
        Input { address: address.to_owned(), name: public_name(address), is_live, settings }
    }

    /// The prefix of its frames' names.
    pub fn clip(&self) -> String {
        file_name(Path::new(self.name.trim_end_matches('/')))
    }

    pub fn is_rtsp(&self) -> bool {
        matches!(scheme(&self.address).as_deref(), Some("rtsp" | "rtsps"))
    }

    /// A text of ffmpeg with the name in place of the address.
    pub fn without_credentials(&self, text: &str) -> String {
        text.replace(&self.address, &self.name)
    }
}

fn scheme(address: &str) -> Option<String> {
    address.split_once("://").map(|(scheme, _)| scheme.to_lowercase())
}

fn is_camera(address: &str) -> bool {
    match scheme(address) {
        Some(scheme) => LIVE_SCHEMES.contains(&scheme.as_str()),
        None => address.starts_with("/dev/"),
    }
}

/// An address without what may be secret; anything else as it is.
pub fn public_name(address: &str) -> String {
    let Some((scheme, rest)) = address.split_once("://") else { return address.to_owned() };
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (host, path) = rest.split_once('/').map_or((rest, None), |(host, path)| (host, Some(path)));
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    path.map_or_else(|| format!("{scheme}://{host}"), |path| format!("{scheme}://{host}/{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_no_credentials() {
        for (address, name) in [
            ("rtsp://me:p@ss@cam:554/h264/ch1?token=5", "rtsp://cam:554/h264/ch1"),
            ("rtsp://cam", "rtsp://cam"),
            ("http://host/a@b.mjpg#x", "http://host/a@b.mjpg"),
            ("/videos/clip?.mp4", "/videos/clip?.mp4"),
        ] {
            assert_eq!(public_name(address), name);
        }
        let input = Input::new("rtsp://me:secret@cam/1", VideoSettings::default());
        assert_eq!(input.without_credentials("rtsp://me:secret@cam/1: 401"), "rtsp://cam/1: 401");
        assert_eq!(Input::new("rtsp://cam/", VideoSettings::default()).clip(), "cam");
    }

    #[test]
    fn cameras_are_known_by_their_address_unless_it_is_said() {
        let is_live = |address: &str| Input::new(address, VideoSettings::default()).is_live;
        assert!(is_live("rtsp://cam/1") && is_live("RTSP://cam/1") && is_live("/dev/video0") && is_live("udp://:5000"));
        assert!(!is_live("http://cam/clip.mp4") && !is_live("clip.mp4") && !is_live("file:///clip.mp4"));
        let said =
            |live| Input::new("http://cam/live.mjpg", VideoSettings { live, ..VideoSettings::default() }).is_live;
        assert!(said(Some(true)) && !said(Some(false)) && !said(None));
    }
}
