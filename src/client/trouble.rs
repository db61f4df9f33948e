//! Why a connection to a server that answers cannot be used.

use std::error::Error;
use std::fmt;

/// What is wrong with the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    UnknownAuthority,
    OtherName,
    Expired,
    NotYetValid,
    WantsCertificate,
    RefusesCertificate,
    /// TLS was asked for, and the server speaks plaintext.
    SpeaksPlaintext,
    /// Plaintext was sent, and the server speaks TLS.
    SpeaksTls,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Trouble::UnknownAuthority => "its certificate is signed by nobody who is trusted here",
            Trouble::OtherName => "its certificate is for other names than the one in the address",
            Trouble::Expired => "its certificate has expired",
            Trouble::NotYetValid => "its certificate is not valid yet",
            Trouble::WantsCertificate => "it wants a client certificate",
            Trouble::RefusesCertificate => "it does not accept this client's certificate",
            Trouble::SpeaksPlaintext => "it does not speak TLS",
            Trouble::SpeaksTls => "it speaks TLS",
        })
    }
}

/// The client's own error when the first byte from a server is that of a TLS record: see `dial`.
pub const SPEAKS_TLS: &str = "the server speaks TLS";

/// The texts of rustls's errors. They are compared as text: HTTP/2 passes on nothing else.
const KNOWN: &[(&str, Trouble)] = &[
    ("invalid peer certificate: UnknownIssuer", Trouble::UnknownAuthority),
    ("invalid peer certificate: certificate not valid for name", Trouble::OtherName),
    ("invalid peer certificate: certificate expired", Trouble::Expired),
    ("invalid peer certificate: certificate not valid yet", Trouble::NotYetValid),
    ("received fatal alert: CertificateRequired", Trouble::WantsCertificate),
    ("received fatal alert: UnknownCA", Trouble::RefusesCertificate),
    ("received fatal alert: BadCertificate", Trouble::RefusesCertificate),
    ("received fatal alert: CertificateExpired", Trouble::RefusesCertificate),
    ("received fatal alert: CertificateUnknown", Trouble::RefusesCertificate),
    ("received fatal alert: DecryptError", Trouble::RefusesCertificate),
    ("received corrupt message of type InvalidContentType", Trouble::SpeaksPlaintext),
    (SPEAKS_TLS, Trouble::SpeaksTls),
];

/// Finds a known trouble among the causes of `error`.
pub fn find(error: &(dyn Error + 'static)) -> Option<Trouble> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let text = error.to_string();
        if let Some((_, trouble)) = KNOWN.iter().find(|(words, _)| text.contains(words)) {
            return Some(*trouble);
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use std::io;

    use tokio_rustls::rustls::pki_types::{ServerName, UnixTime};
    use tokio_rustls::rustls::{self, AlertDescription, CertificateError, InvalidMessage};

    use super::*;

    #[test]
    fn rustls_is_understood() {
        let time = UnixTime::now();
        let expected = ServerName::try_from("camlens.example").expect("a name");
        let other_name = CertificateError::NotValidForNameContext { expected, presented: vec!["localhost".to_owned()] };
        let cases = [
            (rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer), "nobody who is trusted"),
            (rustls::Error::InvalidCertificate(other_name), "other names"),
            (rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after: time }), "expired"),
            (
                rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { time, not_before: time }),
                "not valid yet",
            ),
            (rustls::Error::AlertReceived(AlertDescription::CertificateRequired), "wants a client certificate"),
            (rustls::Error::AlertReceived(AlertDescription::UnknownCA), "does not accept"),
            (rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType), "does not speak TLS"),
        ];
        for (error, expected) in cases {
            let error = io::Error::new(io::ErrorKind::InvalidData, error);
            let found = find(&error).unwrap_or_else(|| panic!("{error} is not known"));
            assert!(found.to_string().contains(expected), "{error}: {found}");
        }
        assert_eq!(find(&io::Error::other("out of paper")), None);
    }
}
