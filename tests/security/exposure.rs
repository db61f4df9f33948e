//! Settings with which a server refuses to start, warnings at the start, and the mode of its socket.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::certificates::{Authority, Files, write_secret};
use super::server::{Server, ask, model, run, tls};

/// Starts a server that must fail; returns its exit code and its error output.
fn refused(arguments: &[&str]) -> (i32, String) {
    let model = model();
    let (code, _, stderr) =
        run(&[&["serve", "--models", model.to_str().expect("UTF-8"), "--log", "warn"], arguments].concat());
    (code, stderr)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn plaintext_beyond_loopback_is_refused_with_the_ways_out() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tokens = folder.path().join("tokens");
    write_secret(&tokens, "a-token-0123456789\n");
    for listen in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        for more in [&[][..], &["--token-file", text(&tokens)]] {
            let (code, stderr) = refused(&[&["--listen", "127.0.0.1:0", "--listen", listen], more].concat());
            assert_eq!(code, 2, "{stderr}");
            for said in [
                &format!("refusing to serve {listen}")[..],
                "unix:/PATH",
                "127.0.0.1",
                "--tls-certificate",
                "--insecure",
            ] {
                assert!(stderr.contains(said), "`{said}` in: {stderr}");
            }
        }
    }
}

#[test]
fn frames_are_shown_beyond_loopback_only_with_tokens_and_a_word_for_plain_http() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tokens = folder.path().join("tokens");
    write_secret(&tokens, "a-token-0123456789\n");
    let page = ["--listen", "127.0.0.1:0", "--view-listen", "0.0.0.0:0"];
    for (more, said) in [
        (&[][..], "view.token_file"),
        (&["--insecure"], "view.token_file"),
        (&["--view-token-file", text(&tokens)], "server.insecure"),
        (&["--token-file", text(&tokens)], "server.insecure"),
    ] {
        let (code, stderr) = refused(&[&page, more].concat());
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains("view.listen") && stderr.contains(said), "`{said}` in: {stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_or_insecure_opens_every_address() {
    let server = Server::start_on("0.0.0.0:0", &["--insecure"]);
    ask(&server.url("http"), None).await.expect("plaintext, as it was allowed");
    drop(server);
    let authority = Authority::new("ours");
    let files = authority.sign("server");
    let arguments = ["--tls-certificate", text(&files.certificate), "--tls-key", text(&files.key)];
    let server = Server::start_on("0.0.0.0:0", &arguments);
    ask(&server.url("https"), Some(tls(&authority, None))).await.expect("TLS");
}

#[test]
fn files_that_cannot_be_used_are_named_at_the_start() {
    let authority = Authority::new("ours");
    let (mine, other) = (authority.sign("mine"), authority.sign("other"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = |name: &str, contents: &str| {
        write_secret(&folder.path().join(name), contents);
        folder.path().join(name)
    };
    let (garbage, empty) = (file("garbage", "no PEM\n"), file("empty", "# nothing\n"));
    let serve =
        |files: &Files| refused(&["--tls-certificate", text(&files.certificate), "--tls-key", text(&files.key)]);
    let pair = |certificate: &Path, key: &Path| Files { certificate: certificate.to_owned(), key: key.to_owned() };
    let cases = [
        (serve(&pair(Path::new("/none.crt"), &mine.key)), "cannot read /none.crt: No such file"),
        (serve(&pair(&garbage, &mine.key)), "garbage: no certificate in PEM format"),
        (serve(&pair(&mine.certificate, &garbage)), "garbage: no private key in PEM format"),
        (serve(&pair(&mine.certificate, &other.key)), "is not that of the certificate"),
        (refused(&["--tls-certificate", text(&mine.certificate)]), "server.tls.key = nothing"),
        (refused(&["--token-file", text(&empty)]), "empty: no token"),
    ];
    for ((code, stderr), expected) in cases {
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(expected), "`{expected}` in: {stderr}");
    }
}

#[test]
fn an_open_key_and_an_expired_certificate_are_warned_of() {
    let authority = Authority::new("ours");
    let files = authority.sign_as("old", &["localhost"], |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(0o644)).expect("a file of ours");
    let mut server = Server::with_tls(&files, &[]);
    assert!(server.wait_for_log("the certificate has expired").contains("WARN"));
    let line = server.wait_for_log("can be read by every user");
    assert!(line.contains("WARN") && line.contains("old.key") && line.contains("644"), "{line}");
}

#[test]
fn a_socket_has_the_mode_that_was_asked_for() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (mode, arguments) in [(0o660, &[][..]), (0o600, &["--unix-socket-mode", "600"])] {
        let path = folder.path().join(format!("{mode:o}.sock"));
        let _server = Server::start_on(&format!("unix:{}", text(&path)), arguments);
        let metadata = std::fs::metadata(&path).expect("the socket");
        assert_eq!(metadata.permissions().mode() & 0o777, mode);
    }
}
