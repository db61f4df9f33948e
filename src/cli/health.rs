//! `camlens health`: a probe for scripts and for Kubernetes.

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

/// Ask a server whether it is ready: exit code 0 when it is, 3 when it is not
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  camlens health
  camlens health --server unix:/run/camlens.sock --wait 60
  camlens health --server https://camlens.example:8033 --tls-ca ca.crt")]
pub struct HealthCommand {
    /// Ask about one service or model [default: the whole server]
    #[arg(long, env = "CAMLENS_SERVICE", value_name = "NAME", default_value = "", hide_default_value = true)]
    service: String,

    /// Keep asking for this many seconds before giving up
    #[arg(long, env = "CAMLENS_WAIT", value_name = "SECONDS", default_value_t = 0)]
    wait: u32,

    /// The server: HOST:PORT, https://HOST:PORT for TLS, or unix:/PATH. Health needs no token
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

const BETWEEN_ASKS: Duration = Duration::from_millis(100);
/// A server that accepts and then says nothing is not ready.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

impl HealthCommand {
    pub fn run(self) -> Result<(), Failure> {
        super::runtime()?.block_on(async {
            let give_up = Instant::now() + Duration::from_secs(u64::from(self.wait));
            loop {
                match self.ask().await {
                    Err(failure) if failure.exit() == Exit::Unavailable && Instant::now() < give_up => {
                        tokio::time::sleep(BETWEEN_ASKS).await;
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
        let answer = tokio::time::timeout(ANSWER_LIMIT, client.check(request))
            .await
            .map_err(|_| unavailable(format!("does not answer within {ANSWER_LIMIT:?}")))?;
        match answer.map(|answer| answer.into_inner().status()) {
            Ok(ServingStatus::Serving) => Ok(()),
            Ok(status) => Err(unavailable(format!("is not ready: {}", status.as_str_name()))),
            Err(status) => Err(Failure::from_status("ask for the server's health", &status)),
        }
    }
}
