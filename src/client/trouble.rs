//! Why a connection did not come about, in words for the person who asked for it.

use std::error::Error;

/// What went wrong, and what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trouble {
    pub sentence: &'static str,
    pub hint: &'static str,
}

/// What the client says when the first byte from a server is that of a TLS record: see `client`.
pub const SPEAKS_TLS: &str = "the server speaks TLS";

/// Each with the words by which rustls's errors are known. They are compared as text: on the way through HTTP/2 nothing
/// else is left of them.
const KNOWN: &[(&str, Trouble)] = &[
    (
        "invalid peer certificate: UnknownIssuer",
        Trouble {
            sentence: "its certificate is signed by nobody who is trusted here",
            hint: "--tls-ca names the authority that signed it",
        },
    ),
    (
        "invalid peer certificate: certificate not valid for name",
        Trouble {
            sentence: "its certificate is for other names than the one in the address",
            hint: "--tls-server-name says which name to expect",
        },
    ),
    (
        "invalid peer certificate: certificate expired",
        Trouble { sentence: "its certificate has expired", hint: "the server needs a new certificate" },
    ),
    (
        "invalid peer certificate: certificate not valid yet",
        Trouble { sentence: "its certificate is not valid yet", hint: "are the clocks right?" },
    ),
    (
        "received fatal alert: CertificateRequired",
        Trouble { sentence: "it wants a client certificate", hint: "--tls-certificate and --tls-key name one" },
    ),
    ("received fatal alert: UnknownCA", REFUSED),
    ("received fatal alert: BadCertificate", REFUSED),
    ("received fatal alert: CertificateExpired", REFUSED),
    ("received fatal alert: CertificateUnknown", REFUSED),
    ("received fatal alert: DecryptError", REFUSED),
    (
        "received corrupt message of type InvalidContentType",
        Trouble { sentence: "it does not speak TLS", hint: "name it without https://" },
    ),
    (SPEAKS_TLS, Trouble { sentence: "it speaks TLS", hint: "name it https://HOST:PORT" }),
];

const REFUSED: Trouble = Trouble {
    sentence: "it does not accept this client's certificate",
    hint: "--tls-certificate must name a certificate that is valid and signed by an authority that the server knows",
};

/// Looks for a reason that is known behind `error`.
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
            assert!(found.sentence.contains(expected), "{error}: {}", found.sentence);
        }
        assert_eq!(find(&io::Error::other("out of paper")), None);
    }
}
