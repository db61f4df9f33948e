//! The encodings: their names, what a call's headers ask for, and the compression of one message.

use std::io::{self, BufRead, Read, Write};

use flate2::Compression;
use flate2::bufread::{MultiGzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use tonic::Status;
use tonic::codegen::http::{HeaderMap, HeaderValue};

/// How messages may be compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Gzip,
    /// zlib's format (RFC 1950), as gRPC has it.
    Deflate,
    Zstd,
}

/// All of them as `grpc-accept-encoding` lists them.
const ACCEPTED: &str = "gzip,deflate,zstd,identity";

const GRPC_ENCODING: &str = "grpc-encoding";
const GRPC_ACCEPT_ENCODING: &str = "grpc-accept-encoding";

/// Bytes that are inflated at a time.
const PIECE_BYTES: usize = 64 << 10;

/// A message that inflates to no more than this is kept when its size is found; a larger one is inflated again.
const KEPT_BYTES: usize = 64 << 10;

/// The largest window of zstd, 8 MiB, as a power of two. RFC 9659 sets the same limit for HTTP: a decoder has a window
/// in memory for each frame.
const MAX_ZSTD_WINDOW_LOG: u32 = 23;

/// zstd's level: the fastest of the usual ones.
const ZSTD_LEVEL: i32 = 1;

/// What a call's headers say of compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Headers {
    /// Of the request's messages.
    pub(super) request: Option<Encoding>,
    /// Of the answers.
    pub(super) answer: Option<Encoding>,
}

impl Headers {
    /// Takes the headers about compression, so that nothing behind acts on them as well.
    ///
    /// # Errors
    /// UNIMPLEMENTED for an encoding that is not spoken here; its metadata lists those that are.
    pub(super) fn take(headers: &mut HeaderMap) -> Result<Self, Status> {
        let named = headers.remove(GRPC_ENCODING);
        let accepted = headers.remove(GRPC_ACCEPT_ENCODING);
        let Some(named) = named.as_ref().map(HeaderValue::as_bytes).filter(|name| *name != b"identity") else {
            return Ok(Headers { request: None, answer: None });
        };
        let Some(request) = Encoding::of(named) else {
            let name: String = String::from_utf8_lossy(named).chars().take(40).collect();
            let mut status = Status::unimplemented(format!(
                "{GRPC_ENCODING}: `{name}` is not spoken here: messages may be gzip, deflate, zstd or identity"
            ));
            status.metadata_mut().insert(GRPC_ACCEPT_ENCODING, tonic::metadata::MetadataValue::from_static(ACCEPTED));
            return Err(status);
        };
        let accepted = accepted.as_ref().and_then(|value| value.to_str().ok()).unwrap_or("");
        let mut accepted = accepted.split(',').filter_map(|name| Encoding::of(name.trim().as_bytes()));
        let first = accepted.clone().next();
        let answer = if accepted.any(|one| one == request) { Some(request) } else { first };
        Ok(Headers { request: Some(request), answer })
    }
}

/// Why a message cannot be inflated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum InflateError {
    #[error("it inflates to more than {limit} bytes")]
    TooLarge { limit: usize },
    #[error("its window has more than {} bytes, the most that is allowed", 1_u64 << MAX_ZSTD_WINDOW_LOG)]
    Window,
    #[error("{0}")]
    Corrupt(String),
}

/// The inflated size of a message, and what was kept of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Measured {
    /// A small message, whole.
    Whole(Vec<u8>),
    /// The size of a larger one.
    Larger(usize),
}

impl Encoding {
    /// The encoding of a name, in lower case as the protocol has it.
    fn of(name: &[u8]) -> Option<Self> {
        [Encoding::Gzip, Encoding::Deflate, Encoding::Zstd].into_iter().find(|one| one.name().as_bytes() == name)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Encoding::Gzip => "gzip",
            Encoding::Deflate => "deflate",
            Encoding::Zstd => "zstd",
        }
    }

    /// Finds the size that a message inflates to, in constant memory.
    pub(super) fn measure(self, compressed: &[u8], limit: usize) -> Result<Measured, InflateError> {
        let (mut kept, mut size) = (Vec::new(), 0);
        self.inflate_pieces(compressed, |piece| {
            size += piece.len();
            if size > limit {
                return Err(InflateError::TooLarge { limit });
            }
            if size <= KEPT_BYTES {
                kept.extend_from_slice(piece);
            } else {
                kept = Vec::new();
            }
            Ok(())
        })?;
        Ok(if size <= KEPT_BYTES { Measured::Whole(kept) } else { Measured::Larger(size) })
    }

    /// Inflates a message of a known size.
    pub(super) fn inflate(self, compressed: &[u8], size: usize) -> Result<Vec<u8>, InflateError> {
        let mut inflated = Vec::with_capacity(size);
        self.inflate_pieces(compressed, |piece| {
            if piece.len() > size - inflated.len() {
                return Err(InflateError::TooLarge { limit: size });
            }
            inflated.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(inflated)
    }

    /// Inflates a message in pieces. All of `compressed` must belong to it.
    fn inflate_pieces(
        self,
        compressed: &[u8],
        take: impl FnMut(&[u8]) -> Result<(), InflateError>,
    ) -> Result<(), InflateError> {
        if compressed.is_empty() {
            return Err(InflateError::Corrupt("it is empty".to_owned()));
        }
        match self {
            Encoding::Gzip => read_pieces(&mut MultiGzDecoder::new(compressed), take),
            Encoding::Deflate => {
                let mut decoder = ZlibDecoder::new(compressed);
                read_pieces(&mut decoder, take)?;
                match decoder.get_ref().len() {
                    0 => Ok(()),
                    left => Err(InflateError::Corrupt(format!("{left} bytes follow its end"))),
                }
            }
            Encoding::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(compressed).map_err(InflateError::of)?;
                decoder.window_log_max(MAX_ZSTD_WINDOW_LOG).map_err(InflateError::of)?;
                read_pieces(&mut decoder, take)
            }
        }
    }

    /// Compresses a message at the encoding's fastest level.
    pub(super) fn compress(self, message: &[u8]) -> io::Result<Vec<u8>> {
        let out = Vec::with_capacity(message.len() / 2);
        match self {
            Encoding::Gzip => {
                let mut encoder = GzEncoder::new(out, Compression::fast());
                encoder.write_all(message)?;
                encoder.finish()
            }
            Encoding::Deflate => {
                let mut encoder = ZlibEncoder::new(out, Compression::fast());
                encoder.write_all(message)?;
                encoder.finish()
            }
            Encoding::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(out, ZSTD_LEVEL)?;
                // The window then is no larger than the message.
                encoder.set_pledged_src_size(Some(message.len() as u64))?;
                encoder.write_all(message)?;
                encoder.finish()
            }
        }
    }
}

fn read_pieces(
    decoder: &mut impl Read,
    mut take: impl FnMut(&[u8]) -> Result<(), InflateError>,
) -> Result<(), InflateError> {
    let mut decoder = io::BufReader::with_capacity(PIECE_BYTES, decoder);
    loop {
        let piece = decoder.fill_buf().map_err(InflateError::of)?;
        if piece.is_empty() {
            return Ok(());
        }
        let length = piece.len();
        take(piece)?;
        decoder.consume(length);
    }
}

impl InflateError {
    fn of(error: io::Error) -> Self {
        let text = error.to_string();
        if text.contains("too much memory") { InflateError::Window } else { InflateError::Corrupt(text) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Encoding; 3] = [Encoding::Gzip, Encoding::Deflate, Encoding::Zstd];

    fn take(encoding: Option<&'static str>, accepted: Option<&'static str>) -> Result<Headers, Status> {
        let mut headers = HeaderMap::new();
        let pairs = [(GRPC_ENCODING, encoding), (GRPC_ACCEPT_ENCODING, accepted)];
        headers.extend(pairs.into_iter().filter_map(|(name, value)| {
            Some((tonic::codegen::http::HeaderName::from_static(name), HeaderValue::from_static(value?)))
        }));
        let taken = Headers::take(&mut headers);
        assert!(headers.is_empty());
        taken
    }

    #[test]
    fn answers_are_compressed_for_those_who_name_an_encoding_and_can_read_one() {
        let cases = [
            (None, None, None, None),
            (None, Some("identity, deflate, gzip"), None, None),
            (Some("identity"), Some("gzip"), None, None),
            (Some("gzip"), None, Some(Encoding::Gzip), None),
            (Some("gzip"), Some("identity"), Some(Encoding::Gzip), None),
            (Some("gzip"), Some("identity, deflate, gzip"), Some(Encoding::Gzip), Some(Encoding::Gzip)),
            (Some("zstd"), Some("identity,deflate,gzip"), Some(Encoding::Zstd), Some(Encoding::Deflate)),
            (Some("deflate"), Some("br, zstd"), Some(Encoding::Deflate), Some(Encoding::Zstd)),
        ];
        for (encoding, accepted, request, answer) in cases {
            let taken = take(encoding, accepted).expect("it is spoken");
            assert_eq!(taken, Headers { request, answer }, "{encoding:?} {accepted:?}");
        }
        for unknown in ["snappy", "GZIP", ""] {
            let status = take(Some(unknown), Some("gzip")).expect_err("unknown");
            assert_eq!(status.code(), tonic::Code::Unimplemented);
            assert_eq!(status.metadata().get(GRPC_ACCEPT_ENCODING).expect("a list"), ACCEPTED);
            assert!(status.message().contains(&format!("`{unknown}`")), "{status}");
        }
    }

    proptest! {
        #[test]
        fn what_is_compressed_inflates_to_itself(
            byte in any::<u8>(),
            repeated in 0usize..200_000,
            random in prop::collection::vec(any::<u8>(), 0..2000),
        ) {
            let message = [vec![byte; repeated], random].concat();
            for encoding in ALL {
                let compressed = encoding.compress(&message).expect("memory");
                match encoding.measure(&compressed, message.len()).expect("it is sound") {
                    Measured::Whole(whole) => prop_assert_eq!(&whole, &message),
                    Measured::Larger(size) => prop_assert_eq!(size, message.len()),
                }
                prop_assert_eq!(encoding.inflate(&compressed, message.len()).expect("it is sound"), message.clone());
            }
        }

        #[test]
        fn damage_is_an_error_or_some_message_within_the_limit(
            at in 0usize..10_000,
            value in any::<u8>(),
            cut in 0usize..10_000,
        ) {
            let message: Vec<u8> = (0..30_000_u32).flat_map(|n| (n * n % 251).to_le_bytes()).collect();
            for encoding in ALL {
                let mut compressed = encoding.compress(&message).expect("memory");
                let length = compressed.len();
                compressed[at % length] = value;
                compressed.truncate(length - cut % length);
                if let Ok(Measured::Larger(size)) = encoding.measure(&compressed, 150_000) {
                    prop_assert!(size <= 150_000);
                }
            }
        }
    }

    #[test]
    fn a_message_that_is_cut_short_or_goes_on_is_corrupt() {
        let message = vec![7; 100_000];
        for encoding in ALL {
            let compressed = encoding.compress(&message).expect("memory");
            let cut = &compressed[..compressed.len() - 1];
            let more = [&compressed[..], b"more"].concat();
            for wrong in [cut, &more, b"\x1f\x8b", b"zzzz", b""] {
                let error = encoding.measure(wrong, 1 << 20).expect_err("it is damaged");
                assert!(matches!(error, InflateError::Corrupt(_)), "{encoding:?} {wrong:?}: {error:?}");
            }
        }
    }

    #[test]
    fn a_bomb_is_found_out_at_the_limit() {
        let limit = 1 << 20;
        for encoding in ALL {
            let exact = encoding.compress(&vec![0; limit]).expect("memory");
            assert_eq!(encoding.measure(&exact, limit), Ok(Measured::Larger(limit)));
            let bomb = encoding.compress(&vec![0; 64 << 20]).expect("memory");
            assert!(bomb.len() < limit, "{encoding:?}: {}", bomb.len());
            assert_eq!(encoding.measure(&bomb, limit), Err(InflateError::TooLarge { limit }));
        }
    }

    #[test]
    fn several_members_and_frames_are_one_message_and_a_huge_window_is_refused() {
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            let parts = [b"ab", b"cd"].map(|part| encoding.compress(part).expect("memory"));
            assert_eq!(encoding.measure(&parts.concat(), 100), Ok(Measured::Whole(b"abcd".to_vec())));
        }
        // A frame of zstd whose header announces a window of 1 GiB, and an empty last block.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0, 20 << 3, 1, 0, 0];
        assert_eq!(Encoding::Zstd.measure(&frame, 1 << 30), Err(InflateError::Window));
    }
}
