//! Why a connection to a server cannot be used although the server answers.

use std::error::Error;
use std::fmt;

/// The problem of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    UnknownAuthority,
    OtherName,
    Expired,
    NotYetValid,
    RequiresCertificate,
    RefusesCertificate,
    /// The client uses TLS and the server plaintext.
    SpeaksPlaintext,
    /// The client uses plaintext and the server TLS.
    SpeaksTls,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Trouble::UnknownAuthority => "its certificate is signed by an unknown authority",
            Trouble::OtherName => "its certificate is for other names than the one in the address",
            Trouble::Expired => "its certificate has expired",
            Trouble::NotYetValid => "its certificate is not valid yet",
            Trouble::RequiresCertificate => "it requires a client certificate",
            Trouble::RefusesCertificate => "it does not accept this client's certificate",
            Trouble::SpeaksPlaintext => "it does not speak TLS",
            Trouble::SpeaksTls => "it speaks TLS",
        })
    }
}

/// The error of `dial` when the first byte that answers plaintext is that of a TLS record.
pub const SPEAKS_TLS: &str = "the server speaks TLS";

/// Texts of rustls's errors. HTTP/2 passes on the text alone, not the error.
const KNOWN: &[(&str, Trouble)] = &[
    ("invalid peer certificate: UnknownIssuer", Trouble::UnknownAuthority),
    ("invalid peer certificate: certificate not valid for name", Trouble::OtherName),
    ("invalid peer certificate: certificate expired", Trouble::Expired),
    ("invalid peer certificate: certificate not valid yet", Trouble::NotYetValid),
    ("received fatal alert: CertificateRequired", Trouble::RequiresCertificate),
    ("received fatal alert: UnknownCA", Trouble::RefusesCertificate),
    ("received fatal alert: BadCertificate", Trouble::RefusesCertificate),
    ("received fatal alert: CertificateExpired", Trouble::RefusesCertificate),
    ("received fatal alert: CertificateUnknown", Trouble::RefusesCertificate),
    ("received fatal alert: DecryptError", Trouble::RefusesCertificate),
    ("received corrupt message of type InvalidContentType", Trouble::SpeaksPlaintext),
    (SPEAKS_TLS, Trouble::SpeaksTls),
];

/// Finds a known problem among the causes of `error`.
pub fn find(error: &(dyn Error + 'static)) -> Option<Trouble> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let text = error.to_string();
        if let Some((_, trouble)) = KNOWN.iter().find(|(known, _)| text.contains(known)) {
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
    fn the_errors_of_rustls_are_recognised() {
        let time = UnixTime::now();
        let expected = ServerName::try_from("camlens.example").expect("a name");
        let other_name = CertificateError::NotValidForNameContext { expected, presented: vec!["localhost".to_owned()] };
        let cases = [
            (rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer), "an unknown authority"),
            (rustls::Error::InvalidCertificate(other_name), "other names"),
            (rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after: time }), "expired"),
            (
                rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { time, not_before: time }),
                "not valid yet",
            ),
            (rustls::Error::AlertReceived(AlertDescription::CertificateRequired), "requires a client certificate"),
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
