//! `camlens health`: a readiness probe for scripts and Kubernetes.

use std::time::{Duration, Instant};

use clap::Args;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::connection::Connection;
use super::failure::{Exit, Failure};
use crate::cli::credential_args::TlsArgs;
use crate::client::Address;
use crate::client::Bearer;

/// Check whether a server is ready: exit code 0 if it is, 3 if it is not
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  camlens health
  camlens health --server unix:/run/camlens.sock --wait 60
  camlens health --server https://camlens.example:8033 --tls-ca ca.crt")]
pub struct HealthCommand {
    /// Service or model to check [default: the whole server]
    #[arg(long, env = "CAMLENS_SERVICE", value_name = "NAME", default_value = "", hide_default_value = true)]
    service: String,

    /// Time to wait for the server to become ready, in seconds
    #[arg(long, env = "CAMLENS_WAIT", value_name = "SECONDS", default_value_t = 0)]
    wait: u32,

    /// Address of the server: HOST:PORT, https://HOST:PORT for TLS, or unix:/PATH. Health checks need no token
    #[arg(
        long,
        env = "CAMLENS_SERVER",
        value_name = "ADDRESS",
        help_heading = "Server",
        default_value = "127.0.0.1:8033"
    )]
    server: Address,

    #[command(flatten)]
    tls: TlsArgs,
}

const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// A server that accepts the connection and does not answer within this time is not ready.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

impl HealthCommand {
    pub fn run(self) -> Result<(), Failure> {
        super::runtime()?.block_on(async {
            let deadline = Instant::now() + Duration::from_secs(u64::from(self.wait));
            loop {
                match self.ask().await {
                    Err(failure) if failure.exit() == Exit::Unavailable && Instant::now() < deadline => {
                        tokio::time::sleep(RETRY_INTERVAL).await;
                    }
                    end => return end,
                }
            }
        })
    }

    async fn ask(&self) -> Result<(), Failure> {
        let address = &self.server;
        let unavailable = |why: String| Failure::new(Exit::Unavailable, format!("the server at {address} {why}"));
        let connection = Connection::to(&self.server, &self.tls, Bearer::default()).await?;
        let request = HealthCheckRequest { service: self.service.clone() };
        let mut client = HealthClient::new(connection.channel());
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, client.check(request))
            .await
            .map_err(|_| unavailable(format!("does not answer within {ANSWER_TIMEOUT:?}")))?;
        match answer.map(|answer| answer.into_inner().status()) {
            Ok(ServingStatus::Serving) => Ok(()),
            Ok(status) => Err(unavailable(format!("is not ready: {}", status.as_str_name()))),
            Err(status) => Err(Failure::from_status("check the server's health", &status)),
        }
    }
}
