//! Ways to a collector: OTLP over gRPC or HTTP, plain or TLS.

use std::fs;
use std::path::{Path, PathBuf};

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::{MetricExporter, WithExportConfig, WithHttpConfig, WithTonicConfig};
use thiserror::Error;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, crypto::ring};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use super::sender::{CLIENT_NAME, Sender, in_full};
use super::settings::{Destination, Protocol};

/// Why there is no way to the collector.
#[derive(Debug, Error)]
pub enum ChannelError {
    #[error("`{endpoint}` is no OTLP endpoint: {cause}; give http://HOST:PORT, such as http://localhost:4317")]
    Endpoint { endpoint: String, cause: String },
    #[error("{}: {cause}", path.display())]
    File { path: PathBuf, cause: String },
    #[error("TLS to the collector: {0}")]
    Tls(#[from] rustls::Error),
}

/// For traces. Needs no collector yet, but the runtime that it will be used in.
pub(super) fn sender(to: &Destination) -> Result<Sender, ChannelError> {
    match to.protocol {
        Protocol::Grpc => {
            let mut endpoint = Endpoint::from_shared(to.endpoint.clone())
                .and_then(|endpoint| endpoint.user_agent(CLIENT_NAME))
                .map_err(|cause| no_endpoint(to, &cause))?
                .connect_timeout(to.timeout);
            if let Some(tls) = tonic_tls(to)? {
                endpoint = endpoint.tls_config(tls).map_err(|cause| no_endpoint(to, &cause))?;
            }
            Ok(Sender::grpc(endpoint.connect_lazy(), to))
        }
        Protocol::HttpProtobuf => {
            let client = Client::builder(TokioExecutor::new()).build(connector(to)?);
            Sender::http(client, to).map_err(|cause| no_endpoint(to, &cause))
        }
    }
}

/// For metrics. Needs no collector yet, but the runtime that it will be used in.
pub(super) fn metric_exporter(to: &Destination) -> Result<MetricExporter, ChannelError> {
    match to.protocol {
        Protocol::Grpc => over_grpc(MetricExporter::builder().with_tonic(), to)?.build(),
        Protocol::HttpProtobuf => over_http(MetricExporter::builder().with_http(), to)?.build(),
    }
    .map_err(|cause| no_endpoint(to, &cause))
}

fn no_endpoint(to: &Destination, cause: &dyn std::error::Error) -> ChannelError {
    ChannelError::Endpoint { endpoint: to.endpoint.clone(), cause: in_full(cause) }
}

fn over_grpc<B: WithExportConfig + WithTonicConfig>(builder: B, to: &Destination) -> Result<B, ChannelError> {
    let builder = builder.with_endpoint(&to.endpoint).with_timeout(to.timeout);
    Ok(match tonic_tls(to)? {
        Some(tls) => builder.with_tls_config(tls),
        None => builder,
    })
}

fn over_http<B: WithExportConfig + WithHttpConfig>(builder: B, to: &Destination) -> Result<B, ChannelError> {
    Ok(builder
        .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
        .with_endpoint(&to.endpoint)
        .with_timeout(to.timeout)
        .with_http_client(HyperClient::new(connector(to)?, to.timeout, None)))
}

/// `None` for a plain endpoint.
fn tonic_tls(to: &Destination) -> Result<Option<ClientTlsConfig>, ChannelError> {
    if !to.endpoint.starts_with("https://") {
        return Ok(None);
    }
    let mut tls = ClientTlsConfig::new();
    tls = match &to.certificate {
        Some(path) => tls.ca_certificate(Certificate::from_pem(read(path)?)),
        None => tls.with_native_roots(),
    };
    if let Some((certificate, key)) = &to.client {
        tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    Ok(Some(tls))
}

fn connector(to: &Destination) -> Result<HttpsConnector<HttpConnector>, ChannelError> {
    let mut roots = RootCertStore::empty();
    if to.endpoint.starts_with("https://") {
        match &to.certificate {
            Some(path) => {
                roots.add_parsable_certificates(certificates(path)?);
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
    }
    let config = ClientConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let config = match &to.client {
        Some((certificate, key)) => {
            let parsed = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| ChannelError::File { path: key.clone(), cause: error.to_string() })?;
            config.with_client_auth_cert(certificates(certificate)?, parsed)?
        }
        None => config.with_no_client_auth(),
    };
    Ok(HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().build())
}

fn read(path: &Path) -> Result<Vec<u8>, ChannelError> {
    fs::read(path).map_err(|error| ChannelError::File { path: path.to_owned(), cause: error.to_string() })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ChannelError> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| ChannelError::File { path: path.to_owned(), cause: error.to_string() })
}
