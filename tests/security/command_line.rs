//! The command line as the client of a server with TLS and tokens.

use std::path::Path;

use super::certificates::{Authority, write_secret};
use super::server::{Server, camlens, run};

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Runs `camlens models`; the error is its error output.
fn models(server: &str, arguments: &[&str]) -> Result<String, String> {
    let (code, stdout, stderr) = run(&[&["models", "--server", server], arguments].concat());
    if code == 0 { Ok(stdout) } else { Err(stderr) }
}

#[test]
fn a_server_with_mutual_tls_and_tokens_is_used_from_the_command_line() {
    let (authority, clients) = (Authority::new("ours"), Authority::new("clients"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (tokens, other) = (folder.path().join("tokens"), folder.path().join("other"));
    write_secret(&tokens, "camera: the-token-0123456789\n");
    write_secret(&other, "another-token-0123456789\n");
    let (ca, client_ca) = (authority.certificate(), clients.certificate());
    let files = authority.sign_as("server", &["camlens.example"], |_| {});
    let mut server = Server::with_tls(&files, &["--tls-client-ca", text(&client_ca), "--token-file", text(&tokens)]);
    server.keep_secret("the-token-0123456789\nanother-token-0123456789");
    let camera = clients.sign_as("camera", &["camera"], |_| {});
    let url = server.url("https");
    let trust = ["--tls-ca", text(&ca), "--tls-server-name", "camlens.example"];
    let identity = ["--tls-certificate", text(&camera.certificate), "--tls-key", text(&camera.key)];
    let known = [&trust[..], &identity].concat();

    let listed = models(&url, &[&known[..], &["--token-file", text(&tokens)]].concat()).expect("it is served");
    assert!(listed.contains("resnet_basic@1"), "{listed}");
    let (code, _, stderr) = run(&[&["health", "--server", &url][..], &known].concat());
    assert_eq!((code, stderr.as_str()), (0, ""), "health needs no token");
    // The same from the environment.
    let mut command = camlens(&["models"]);
    let environment = [
        ("CAMLENS_SERVER", url.as_str()),
        ("CAMLENS_TLS_CA", text(&ca)),
        ("CAMLENS_TLS_SERVER_NAME", "camlens.example"),
        ("CAMLENS_TLS_CERTIFICATE", text(&camera.certificate)),
        ("CAMLENS_TLS_KEY", text(&camera.key)),
        ("CAMLENS_TOKEN_FILE", text(&tokens)),
    ];
    let output = command.envs(environment).output().expect("the program starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    for (arguments, sentence, hint) in [
        (known.clone(), "this server wants a token", "--token-file names"),
        ([&known[..], &["--token-file", text(&other)]].concat(), "none of this server's", "--token-file names"),
        (trust.to_vec(), "requires a client certificate", "--tls-certificate and --tls-key"),
        (vec!["--tls-ca", text(&client_ca)], "signed by an unknown authority", "--tls-ca"),
        (identity.to_vec(), "signed by an unknown authority", "--tls-ca"),
        (vec!["--tls-ca", text(&ca)], "for other names than the one in the address", "--tls-server-name"),
    ] {
        let stderr = models(&url, &arguments).expect_err(sentence);
        let (error, hints) = stderr.split_once("\nhint: ").unwrap_or_else(|| panic!("a hint: {stderr}"));
        assert!(error.starts_with("error: ") && error.contains(sentence), "{stderr}");
        assert!(hints.contains(hint) && hints.lines().count() == 1, "{stderr}");
        assert!(!stderr.contains("token-0123456789"), "{stderr}");
    }
    assert!(server.log().contains("TRACE"), "secrets are looked for where everything is logged");
    let stderr = models(&server.url("http"), &[]).expect_err("plaintext");
    assert!(stderr.contains("it speaks TLS\nhint: name it https://HOST:PORT"), "{stderr}");
}

#[test]
fn a_refused_client_always_learns_why() {
    let (authority, clients) = (Authority::new("ours"), Authority::new("clients"));
    let (ca, client_ca) = (authority.certificate(), clients.certificate());
    let server = Server::with_tls(&authority.sign("server"), &["--tls-client-ca", text(&client_ca)]);
    for _ in 0..20 {
        let stderr = models(&server.url("https"), &["--tls-ca", text(&ca)]).expect_err("no certificate");
        assert!(stderr.contains("it requires a client certificate"), "{stderr}");
        let stderr = models(&server.url("http"), &[]).expect_err("plaintext");
        assert!(stderr.contains("it speaks TLS"), "{stderr}");
    }
}

#[test]
fn tls_to_a_plaintext_server_says_so() {
    let server = Server::start(&[]);
    let authority = Authority::new("ours");
    let ca = authority.certificate();
    let stderr = models(&server.url("https"), &["--tls-ca", text(&ca)]).expect_err("no TLS there");
    assert!(stderr.contains("it does not speak TLS\nhint: name it without https://"), "{stderr}");
}

#[test]
fn a_token_is_not_sent_unencrypted() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tokens = folder.path().join("tokens");
    write_secret(&tokens, "the-token-0123456789\n");
    let stderr = models("192.0.2.1:8033", &["--token-file", text(&tokens)]).expect_err("plaintext");
    assert!(stderr.contains("sent unencrypted") && stderr.contains("--insecure"), "{stderr}");
}
